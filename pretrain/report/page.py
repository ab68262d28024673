"""The text of a report: for a reader who was not there."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from earlybert.core.text import duration, markdown_table
from earlybert.pretrain.plan.recipe import BORDERS
from earlybert.pretrain.plan.text import plan_markdown

Summaries = Mapping[str, dict[str, Any]]

WORDS = """## Words

| word | meaning |
|---|---|
| dense | the full network, nothing cut |
| coefficient | a learnable factor, first 1, on every attention head and every FFN neuron while searching |
| ticket | which heads and neurons of each layer stay: those with the largest coefficients when the search ends |
| narrow | the network that is left; it starts again from its initial weights |
| stack | grow the network in depth: its layers are copied on top of themselves |
| mask distance | share of the units on which the masks drawn at two steps differ |
| phase 1, phase 2 | training on short, then on long sequences |
| masked-token loss | cross-entropy of the hidden tokens, in nats; guessing by frequency gives the unigram's |
| step | one update of the weights, from one global batch |
"""


def page(summaries: Summaries, plans: Mapping[str, dict[str, Any]], pictures: Collection[str]) -> str:
    """The whole report.md; `pictures` are the files that lie beside it, in the runs' order."""
    single = len(summaries) == 1
    title = f"Run {next(iter(summaries))}" if single else f"Runs {', '.join(summaries)} side by side"
    parts = [
        f"# {title}\n\n{opening(summaries)}\nThe words are explained [at the end](#words).\n",
        f"## What came out\n\n{results(summaries)}",
    ]
    for name, plan in plans.items():
        parts.append(f"## {'The plan' if single else f'The plan of {name}'}\n\n{plan_markdown(plan)}")
    parts.append(f"## Time\n\n{times(summaries)}")
    if "time_split.png" in pictures:
        parts.append(f"## Where a step's time goes\n\n{SPLIT}\n\n{image('time_split.png')}\n{split_table(summaries)}")
    parts.append(f"## Interruptions\n\n{interruptions(summaries)}")
    if "curves.png" in pictures:
        parts.append(f"## Losses\n\n{CURVES}\n\n{image('curves.png')}")
    parts += pictured(pictures, "mask_distance", "How the masks settled", MASKS)
    parts += pictured(pictures, "ticket", "The ticket", TICKET)
    if "attention.png" in pictures:
        parts.append(f"## Where attention goes\n\n{attention(summaries)}")
    return "\n".join([*parts, WORDS])


SPLIT = (
    "Mean seconds of an optimizer step on rank 0. Every tenth step is taken apart, and in those nothing overlaps; "
    "waiting for data, checkpoints and validation is counted over all steps."
)
CURVES = (
    "The search belongs to the cost of a narrow run, so its steps, tokens, operations and seconds come first (dotted); "
    "the narrow network then starts anew. Lines are means over a thirtieth of the steps. Tokens and operations are "
    "those of full sequences."
)
MASKS = (
    "Both axes are steps of the search; a square says on which share of the units the masks drawn at those two steps "
    "differ (EarlyBERT's Figure 1). Dark late in the search: the ticket has settled. Before the first update all "
    "coefficients are equal, so row and column 0 mean nothing; colours may be cut off there."
)
TICKET = (
    "Which heads of each layer are kept, and how many neurons, in the network that was searched; where that was "
    "stacked later, every copy of a layer keeps the same units."
)


def image(file: str) -> str:
    return f"![{file.removesuffix('.png').replace('_', ' ')}]({file})\n"


def pictured(pictures: Collection[str], kind: str, title: str, text: str) -> list[str]:
    """A section for the pictures of one kind, one per run; none when there are none."""
    shown = []
    for file in (file for file in pictures if file.startswith(kind)):
        run = file.removeprefix(kind).removeprefix("-").removesuffix(".png")
        shown.append(f"**{run}**\n\n{image(file)}" if run else image(file))
    return [f"## {title}\n\n{text}\n\n" + "\n".join(shown)] if shown else []


def opening(summaries: Summaries) -> str:
    """What was run, on what, and for how long, in sentences."""
    sentences = []
    for name, summary in summaries.items():
        dense, narrow = summary["dense"], summary.get("narrow")
        shape = f"BERT with {len(dense['heads'])} layers ({dense['parameters']:,} parameters)"
        kind = {"search": "a searched", "random": "a random", "all": "an all-keeping"}
        what = f"{kind[narrow['ticket_source']]} ticket of it" if narrow else "all of it"
        depths = sorted(set(summary["layers"].values()))
        grown = f", stacked from {' to '.join(map(str, depths))} layers," if len(depths) > 1 else ""
        steps = ", ".join(f"{stage} {count:,}" for stage, count in summary["steps"].items())
        state = "It is finished" if summary["finished"] else "It is not finished yet"
        ranks = "/".join(map(str, summary["ranks"]))
        sentences.append(
            f"**{name}** pre-trains a {shape}; {what}{grown} is trained to the end. Steps made: {steps}. "
            f"{state}; it ran for {duration(summary['seconds'])} on {ranks} rank{'s' * (ranks != '1')} "
            f"({', '.join(summary['devices'])}). " + outcome(summary)
        )
    return "\n\n".join(sentences) + "\n"


def outcome(summary: dict[str, Any]) -> str:
    """How good the network is by the last validation, beside what needs no network."""
    found = summary["validation"]
    if found is None:
        return "It has not been validated yet."
    return (
        f"At its last validation (step {found['step']:,} of {found['stage']}) it predicted hidden tokens of unseen "
        f"text with a loss of {found['masked_loss']:.3f} nats, {found['masked_accuracy']:.1%} of them right; guessing "
        f"by frequency has a loss of {summary['unigram_cross_entropy']:.3f}."
    )


def table(summaries: Summaries, rows: Iterable[tuple[str, Callable[[dict[str, Any]], str]]]) -> str:
    """One column a run."""
    return markdown_table(
        ["", *summaries], [[title, *(value(summary) for summary in summaries.values())] for title, value in rows]
    )


def results(summaries: Summaries) -> str:
    """Size, loss and accuracy of each run's network."""

    def narrow(summary: dict[str, Any]) -> dict[str, Any]:
        found = summary.get("narrow")
        return found if found and found["parameters"] else summary["dense"]

    def score(stage: str, name: str, form: str) -> Callable[[dict[str, Any]], str]:
        def value(summary: dict[str, Any]) -> str:
            found = summary["stage_validation"].get(stage)
            return format(found[name], form) if found else "-"

        return value

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("parameters of the trained network", lambda summary: f"{narrow(summary)['parameters']:,}"),
        ("heads per layer", lambda summary: " ".join(map(str, narrow(summary)["heads"]))),
        ("neurons per layer", lambda summary: " ".join(map(str, narrow(summary)["neurons"]))),
    ]
    for stage in dict.fromkeys(stage for summary in summaries.values() for stage in summary["steps"]):
        rows.append((f"validation loss, end of {stage}", score(stage, "masked_loss", ".4f")))
        rows.append((f"validation accuracy, end of {stage}", score(stage, "masked_accuracy", ".4f")))
    rows.append(("unigram cross-entropy of the text", lambda summary: f"{summary['unigram_cross_entropy']:.4f}"))
    return table(summaries, rows)


def times(summaries: Summaries) -> str:
    """Seconds of a step, hours in all, and what was saved, by operations, by the paper's protocol and by the clock."""

    def percent(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda summary: "-" if summary.get(name) is None else f"{summary[name]:.1%}"

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"median seconds of a step, {stage}", lambda summary, stage=stage: seconds(summary, stage))  # type: ignore[misc]
        for stage in dict.fromkeys(stage for summary in summaries.values() for stage in summary["steps"])
    ]
    on_gpus = any(device != "CPU" for summary in summaries.values() for device in summary["devices"])
    rows += [
        ("running time", lambda summary: duration(summary["seconds"])),
        ("GPU-hours" if on_gpus else "rank-hours (no GPU)", lambda summary: f"{summary['accelerator_hours']:.2f}"),
        ("operations saved", lambda summary: saved_operations(summary)),
        ("time saved, the paper's protocol", percent("time_saved")),
        ("time saved, by the clock (dense estimated)", percent("time_saved_by_the_clock")),
    ]
    return table(summaries, rows) + PROTOCOL + against_dense(summaries)


PROTOCOL = """
*The paper's protocol*: 1 - (search + narrow steps * r) / dense steps, where r is the median time of a narrow step of
phase 1 over that of a dense step with the same batches, the search's; steps of shallower networks are weighed by their
median times, those of phase 2 by their operations; waiting for data is left out. *By the clock*: the whole running time
of this run, with validation, checkpoints and repeated steps, against dense training estimated from the median dense
step alone, so a low figure.
"""


def seconds(summary: dict[str, Any], stage: str) -> str:
    found = summary["median_step_seconds"].get(stage)
    return "-" if found is None else f"{found:.3f}"


def saved_operations(summary: dict[str, Any]) -> str:
    if not summary["dense_flops"]:
        return "-"
    return f"{1 - summary['flops'] / summary['dense_flops']:.1%}"


def against_dense(summaries: Summaries) -> str:
    """Where a finished dense run stands beside the others: what they saved of its running time."""
    finished = {name: summary for name, summary in summaries.items() if summary["finished"]}
    dense = {name: summary for name, summary in finished.items() if not set(BORDERS) & set(summary["plan"])}
    others = {name: summary for name, summary in finished.items() if name not in dense}
    if len(dense) != 1 or not others:
        return ""
    ((name, measured),) = dense.items()
    said = "; ".join(f"{other} {1 - found['seconds'] / measured['seconds']:.1%}" for other, found in others.items())
    return f"\nRunning time saved against the measured dense run {name}: {said}.\n"


def split_table(summaries: Summaries) -> str:
    """The numbers of the picture, in milliseconds."""
    rows, header = [], ["milliseconds"]
    for name, summary in summaries.items():
        for stage, split in summary["time_split"].items():
            header = ["milliseconds", *(part.replace("_", " and ") for part in split)]
            title = stage if len(summaries) == 1 else f"{name}, {stage}"
            rows.append([title, *(f"{1000 * value:.1f}" for value in split.values())])
    return markdown_table(header, rows)


def interruptions(summaries: Summaries) -> str:
    """Restarts and what they cost."""
    found = {name: summary["interruptions"] for name, summary in summaries.items()}
    if not any(each["restarts"] for each in found.values()):
        return "None.\n"
    return table(
        found,
        [
            ("restarts", lambda each: str(each["restarts"])),
            ("steps done twice", lambda each: f"{each['lost_steps']:,}"),
            ("time for those", lambda each: duration(each["lost_seconds"])),
            ("time to start again", lambda each: duration(each["starting_seconds"])),
            ("time standing still, not part of the running time", lambda each: duration(each["down_seconds"])),
        ],
    )


def attention(summaries: Summaries) -> str:
    """The picture and the numbers of the attention mass, and why one looks at them."""
    found = {name: summary["attention"] for name, summary in summaries.items() if summary["attention"]}
    first = next(iter(found.values()))
    rows = [
        [f"{name}, {title}", *(f"{share:.3f}" for share in mass[kind]), f"{mass['uniform'][kind]:.3f}"]
        for name, mass in found.items()
        for kind, title in (("near", "within two positions"), ("cls", "on [CLS]"))
    ]
    header = ["share of the attention", *(f"layer {layer}" for layer in range(len(first["near"]))), "spread evenly"]
    return (
        "Gong et al. (2019) found that heads of a trained BERT look mostly at neighbouring tokens and at [CLS], in low "
        "and in high layers alike; that likeness is why a deep network may be grown by stacking a shallow one. "
        f"Measured on {first['samples']} held-out samples of {first['length']} tokens, mean over heads and tokens. "
        "A token is its own neighbour. Dashed, and in the last column: attention that is spread evenly.\n\n"
        f"{image('attention.png')}\n{markdown_table(header, rows)}"
    )
