"""The paper's tables and figures as data: what is trained in each row, and the numbers printed for it.

All in percent: accuracy, SQuAD's F1, and CoLA's Matthews correlation, which the paper prints as a fraction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from earlybert.finetune.config import Method

BIG_FOUR = ("MNLI", "QNLI", "QQP", "SST-2")
Paper = Mapping[str, float | str]


@dataclass(frozen=True)
class Arm:
    """One row.

    Args:
        name: as the paper calls it.
        method: what is trained.
        settings: flags of `earlybert finetune` that differ from the paper's default setting.
        model: which of the given networks; rows whose network is not given are left out.
        paper: the paper's numbers by task.
        x, line: where a figure shows it.
    """

    name: str
    method: Method
    settings: Mapping[str, float | str] = field(default_factory=dict)
    model: str = "BERT"
    paper: Paper = field(default_factory=dict)
    x: float = 0.0
    line: str = ""


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Args:
        title: what the paper shows.
        tasks: its columns.
        arms: its rows.
        seeds: runs of each in the paper.
        mean: the paper prints only the mean over the tasks.
        saving: time saved belongs to it.
        distances: mask distances belong to it instead of scores.
        remarks: what else the reader has to know.
        x_label: a figure's horizontal axis.
    """

    title: str
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: int = 1
    mean: bool = False
    saving: bool = False
    distances: bool = False
    remarks: str = ""
    x_label: str = ""


def _row(tasks: tuple[str, ...], numbers: str) -> dict[str, float]:
    return dict(zip(tasks, map(float, numbers.split()), strict=True))


def _mean(number: float) -> Paper:
    return {"mean": number}


ONE = (*BIG_FOUR, "CoLA", "RTE", "MRPC")
TWO = (*BIG_FOUR, "SQuAD")
FOUR = ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "SQuAD")
HEADS_ONLY = {"draw.neuron_ratio": 0.0}
# The paper prunes 6 of the 16 heads of BERT-Large.
LARGE = {"draw.head_ratio": 0.375}

TABLES = {
    1: Experiment(
        "Table 1: heads only, no neurons pruned",
        ONE,
        (
            Arm("BERT", "dense", paper=_row(ONE, "83.16 90.59 90.34 91.70 53.5 65.70 80.96")),
            Arm("EarlyBERT", "earlybert", HEADS_ONLY, paper=_row(ONE, "83.58 90.33 90.41 92.09 52.7 66.19 81.54")),
            Arm("Random", "random", HEADS_ONLY, paper=_row(ONE, "82.26 88.87 0.12 91.17 51.4 63.86 78.57")),
        ),
        seeds=5,
        remarks="The paper's QQP of a random ticket, 0.12, must be a misprint; only its random row has 5 seeds.",
    ),
    2: Experiment(
        "Table 2: fine-tuning",
        TWO,
        (
            Arm("BERT", "dense", paper=_row(TWO, "83.16 90.59 90.34 91.70 87.50")),
            Arm("EarlyBERT", "earlybert", paper=_row(TWO, "81.81 89.18 90.06 90.71 86.13") | {"saved": "40-45"}),
            Arm("Random", "random", paper=_row(TWO, "79.92 84.46 89.42 89.68 84.47") | {"saved": "45-50"}),
            Arm("LayerDrop", "layerdrop", paper=_row(TWO, "81.27 88.91 88.06 89.89 84.25") | {"saved": "33"}),
            Arm("BERT large", "dense", {}, "BERT large", _row(TWO, "86.59 92.29 91.59 92.21 90.76")),
            Arm(
                "EarlyBERT large",
                "earlybert",
                LARGE,
                "BERT large",
                _row(TWO, "85.13 89.22 90.64 90.94 89.45") | {"saved": "35-40"},
            ),
            Arm(
                "Random large",
                "random",
                LARGE,
                "BERT large",
                _row(TWO, "78.45 84.46 89.89 88.65 88.79") | {"saved": "40-45"},
            ),
            Arm(
                "LayerDrop large",
                "layerdrop",
                LARGE,
                "BERT large",
                _row(TWO, "85.12 91.12 88.88 89.97 89.44") | {"saved": "33"},
            ),
        ),
        saving=True,
        remarks="Time saved is the mean over the tasks here; the paper timed QQP.",
    ),
    3: Experiment(
        "Table 3: strength of the L1 term, heads and neurons pruned",
        BIG_FOUR,
        (
            *(
                Arm(
                    f"lambda {weight}",
                    "earlybert",
                    HEADS_ONLY | {"lambda_heads": weight, "lambda_neurons": weight},
                    paper=_mean(mean),
                )
                for weight, mean in (("1e-4", 88.55), ("1e-3", 88.43), ("1e-2", 88.42))
            ),
            *(
                Arm(
                    f"{heads} of 12 heads",
                    "earlybert",
                    {"draw.head_ratio": round(heads / 12, 6), "draw.neuron_ratio": 0.0},
                    paper=_mean(mean),
                )
                for heads, mean in ((4, 88.55), (5, 88.13), (6, 87.65))
            ),
            *(
                Arm(
                    f"{percent} % of the neurons, {scope}",
                    "earlybert",
                    {"draw.neuron_ratio": percent / 100, "draw.neuron_scope": scope},
                    paper=_mean(mean),
                )
                for scope, means in (("layer", (88.18, 88.22, 87.90)), ("global", (88.31, 88.23, 87.91)))
                for percent, mean in zip((30, 40, 50), means, strict=True)
            ),
        ),
        seeds=3,
        mean=True,
        remarks="Which units the first two groups prune beside the heads is not said in the paper; here none.",
    ),
    4: Experiment(
        "Table 4: pre-training, then dense fine-tuning",
        FOUR,
        (
            Arm("BERT", "dense", paper=_row(FOUR, "45 81.40 84.07 89.86 89.80 60.29 90.48 87.60")),
            Arm("EarlyBERT", "dense", {}, "EarlyBERT", _row(FOUR, "41 79.97 80.39 89.86 89.44 61.01 90.94 85.48")),
            Arm("BERT large", "dense", {}, "BERT large", _row(FOUR, "50 83.56 85.90 90.44 90.45 59.93 92.55 90.43")),
            Arm(
                "EarlyBERT large",
                "dense",
                {},
                "EarlyBERT large",
                _row(FOUR, "47 82.54 85.54 90.46 90.38 61.73 91.51 89.36"),
            ),
        ),
        remarks="BERT: pretrain/run.py --config bert_base --plan '[phase1, phase2]'; EarlyBERT: --config bert_base.",
    ),
    5: Experiment(
        "Table 5: time saved and accuracy on QQP",
        ("QQP",),
        (
            Arm("BERT", "dense"),
            *(
                Arm(
                    f"{heads} of 12 heads, {percent} % of the neurons",
                    "earlybert",
                    {"draw.head_ratio": round(heads / 12, 6), "draw.neuron_ratio": percent / 100},
                    paper={"QQP": accuracy, "saved": saved},
                )
                for percent, row in (
                    (30, ((35.78, 89.62), (38.66, 89.55), (41.26, 89.60), (45.34, 89.50))),
                    (40, ((39.72, 89.66), (42.97, 89.61), (43.93, 89.58), (44.49, 89.38))),
                    (50, ((43.89, 89.54), (45.54, 89.35), (47.02, 89.34), (48.53, 89.31))),
                )
                for heads, (saved, accuracy) in zip((3, 4, 5, 6), row, strict=True)
            ),
        ),
        saving=True,
    ),
    6: Experiment(
        "Table 6: a whole epoch of search",
        BIG_FOUR,
        (
            Arm("BERT", "dense", paper=_row(BIG_FOUR, "83.48 90.43 90.37 91.86")),
            Arm(
                "EarlyBERT",
                "earlybert",
                {"search_epochs": 1.0},
                paper=_row(BIG_FOUR, "83.36 90.44 90.33 91.55") | {"saved": "16"},
            ),
        ),
        seeds=3,
        saving=True,
    ),
    7: Experiment(
        "Table 7: equal cost, BERT with fewer steps",
        BIG_FOUR,
        (
            Arm("BERT, reduced", "shortened", paper=_row(BIG_FOUR, "82.85 89.86 89.45 91.70")),
            Arm("EarlyBERT", "earlybert", paper=_row(BIG_FOUR, "83.26 90.16 90.22 91.67")),
        ),
        seeds=3,
        remarks="The paper's EarlyBERT is 1.45 better on MNLI here than in Table 2, at a nominally equal setting.",
    ),
    8: Experiment(
        "Table 8: search on masked tokens",
        BIG_FOUR,
        (
            Arm("BERT", "dense", paper=_row(BIG_FOUR, "83.36 90.53 90.41 91.61")),
            Arm("EarlyBERT", "earlybert", paper=_row(BIG_FOUR, "81.97 88.68 89.26 90.48")),
            Arm(
                "masked tokens, global",
                "earlybert",
                {"search_objective": "mlm"},
                paper=_row(BIG_FOUR, "78.36 84.84 88.86 88.65"),
            ),
            Arm(
                "masked tokens, layer by layer",
                "earlybert",
                {"search_objective": "mlm", "draw.neuron_scope": "layer"},
                paper=_row(BIG_FOUR, "79.01 86.55 89.16 88.53"),
            ),
        ),
        seeds=3,
        remarks="The paper does not say on which text it searched; here on that of the task.",
    ),
    9: Experiment(
        "Table 9: fewer steps of pre-training, mean change in percent",
        FOUR,
        tuple(
            Arm(f"{name} {percent} %", "dense", {}, f"{name} {percent}", {"change": change})
            for name, changes in (("BERT", (0.0, -1.94, -2.48, -3.62)), ("EarlyBERT", (0.0, 1.96, -1.42, -3.43)))
            for percent, change in zip((100, 80, 60, 40), changes, strict=True)
        ),
        remarks="EarlyBERT: pretrain/run.py --narrow.step_factor 1.0, 0.8, 0.6, 0.4 with --draw.neuron_ratio 0; BERT: "
        "fewer --phase1.steps and --phase2.steps.",
    ),
}

FIGURES = {
    1: Experiment(
        "Figure 1: mask distance between steps of the search",
        ("QNLI",),
        (Arm("EarlyBERT", "earlybert", {"search_epochs": 1.0}),),
        distances=True,
        remarks="The paper's upper half, of pre-training, is in every run's report: earlybert report RUN_DIR.",
    ),
    2: Experiment(
        "Figure 2: epochs and learning rate with the ticket (the paper prints no numbers: 2 epochs at 4e-5 are best)",
        BIG_FOUR,
        tuple(
            Arm(
                f"{epochs:g} epochs at {rate}",
                "earlybert",
                {"ticket_epochs": epochs, "ticket_learning_rate": rate},
                x=epochs,
                line=f"learning rate {rate}",
            )
            for epochs in (1.0, 2.0, 3.0)
            for rate in ("2e-5", "4e-5", "8e-5")
        ),
        mean=True,
        x_label="epochs with the ticket",
    ),
    3: Experiment(
        "Figure 3: when the search stops (no numbers printed: 88 to 90, a jump at 20 %)",
        ("QNLI",),
        tuple(
            Arm(f"{percent} % of the first epoch", "earlybert", {"search_epochs": percent / 100}, x=percent)
            for percent in (1, 5, 10, 20, 40, 100)
        ),
        x_label="end of the search, % of the first epoch",
    ),
    4: Experiment(
        "Figure 4: fewer steps of pre-training, heads only (no numbers printed: 80 % is the best trade)",
        FOUR,
        tuple(
            Arm(f"EarlyBERT {percent} %", "dense", {}, f"EarlyBERT {percent}", x=percent)
            for percent in (100, 80, 60, 40)
        ),
        mean=True,
        x_label="steps of pre-training, % of the dense run's",
        remarks="pretrain/run.py --draw.neuron_ratio 0 --narrow.step_factor 1.0, 0.8, 0.6, 0.4",
    ),
}
