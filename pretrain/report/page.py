"""The text of a report: for a reader who was not there."""

from collections.abc import Callable, Collection, Mapping, Sequence
from urllib.parse import quote

from earlybert.core.text import duration, markdown_table
from earlybert.pretrain.network.config import dense_config, without_coefficients
from earlybert.pretrain.network.losses.part import LossPart
from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.plan.text import plan_markdown
from earlybert.pretrain.report.attention_mass import AttentionMass
from earlybert.pretrain.report.outcome import Outcome, StageOutcome
from earlybert.pretrain.report.summary import why_not_timed
from earlybert.pretrain.train.plateau import ADVICE

Outcomes = Mapping[str, Outcome]
Attention = Mapping[str, AttentionMass]


def page(outcomes: Outcomes, attention: Attention, pictures: Collection[str]) -> str:
    """The whole report.md; `pictures` are the files that lie beside it, in the runs' order."""
    single = len(outcomes) == 1
    title = f"Run {next(iter(outcomes))}" if single else f"Runs {', '.join(outcomes)} side by side"
    parts = [
        f"# {title}\n\n{opening(outcomes)}\nThe words are explained [at the end](#words).\n",
        f"## Results\n\n{results(outcomes)}",
    ]
    for name, outcome in outcomes.items():
        parts.append(f"## {'The plan' if single else f'The plan of {name}'}\n\n{plan_markdown(outcome.plan)}")
    parts.append(f"## Time\n\n{times(outcomes)}")
    if "time_split.png" in pictures:
        parts.append(f"## Where a step's time goes\n\n{SPLIT}\n\n{image('time_split.png')}\n{split_table(outcomes)}")
    parts.append(f"## Interruptions\n\n{interruptions(outcomes)}")
    if curves := [file for file in pictures if file.startswith("curves")]:
        parts.append(f"## Losses\n\n{CURVES}\n\n" + "\n".join(image(file) for file in curves))
    parts += pictured(pictures, "mask_distance", "How the masks settled", MASKS)
    parts += pictured(pictures, "ticket", "The ticket", TICKET)
    if "attention.png" in pictures:
        parts.append(f"## Where attention goes\n\n{attention_section(attention)}")
    return "\n".join([*parts, words(outcomes)])


def words(outcomes: Outcomes) -> str:
    """The glossary: what every report says, what a search does, and what the plans' borders say of themselves."""
    borders = {border.word: border.meaning for each in outcomes.values() for border in each.plan.recipe.plan_borders}
    searches = any(stage.planned.stage.searching for each in outcomes.values() for stage in each.stages)
    meanings = {"dense": "the full network, nothing cut"}
    if searches:
        meanings["coefficient"] = (
            "a learnable factor, first 1, on every attention head and every FFN neuron while searching"
        )
        meanings["mask distance"] = "share of the units on which the masks drawn at two steps differ"
    if searches or any(each.plan.ticket for each in outcomes.values()):
        meanings["ticket"] = (
            "which heads and neurons of each layer stay: those that its search ranks highest, unless it is given"
        )
    meanings |= borders
    meanings |= {
        "phase 1, phase 2": "training on short, then on long sequences",
        **{f"loss of {part.title}": f"cross-entropy in nats, mean over {part.counted}" for part in losses(outcomes)},
        "guessing by frequency": "giving every answer the probability that it has in the corpus",
        "step": "one update of the weights, from one global batch",
    }
    rows = ["| word | meaning |\n|---|---|\n", *(f"| {word} | {meaning} |\n" for word, meaning in meanings.items())]
    return f"## Words\n\n{''.join(rows)}"


SPLIT = (
    "Mean seconds of an optimizer step on rank 0. Every tenth step is taken apart, and in those nothing overlaps; "
    "waiting for data, checkpoints and validation is counted over all steps."
)
CURVES = (
    "What a search took belongs to the run's cost, so its steps, tokens, operations and seconds come first (dotted). "
    "Lines are means over a thirtieth of the steps, of one stage each. At an upright line the stage begins that it "
    "names. Tokens and operations are those of full sequences."
)
MASKS = (
    "Both axes are steps of the search; a square says on which share of the units the masks drawn at those two steps "
    "differ (EarlyBERT's Figure 1). Dark late in the search: the ticket has settled. Before the first update no unit "
    "differs from another in coefficient or importance, so by these row and column 0 mean nothing; colours may be cut "
    "off there."
)
TICKET = (
    "Which heads of each layer are kept, and how many neurons, in the network that the ticket was drawn for. What the "
    "plan does to that network later, its words say at the end."
)


def image(file: str) -> str:
    """The picture of this name; runs may be called with a space or bracket, which ends an address in Markdown."""
    return f"![{file.removesuffix('.png').replace('_', ' ')}]({quote(file)})\n"


def pictured(pictures: Collection[str], prefix: str, title: str, text: str) -> list[str]:
    """A section for the pictures whose names begin so, one per run; none when there are none."""
    shown = []
    for file in (file for file in pictures if file.startswith(prefix)):
        run = file.removeprefix(prefix).removeprefix("-").removesuffix(".png")
        shown.append(f"**{run}**\n\n{image(file)}" if run else image(file))
    return [f"## {title}\n\n{text}\n\n" + "\n".join(shown)] if shown else []


def opening(outcomes: Outcomes) -> str:
    """What was run, on what, and for how long, in sentences."""
    sentences = []
    for name, outcome in outcomes.items():
        full = outcome.plan.full
        shape = f"BERT with {full.num_hidden_layers} layers ({count_parameters(full):,} parameters)"
        steps = ", ".join(f"{stage.name} {stage.steps:,}" for stage in outcome.stages)
        state = "The run is finished" if outcome.finished else "The run is not finished yet"
        ranks = "/".join(map(str, outcome.ranks))
        sentences.append(
            f"**{name}** pre-trains a {shape}; {what_is_trained(outcome)}. Steps made: {steps}. "
            f"{state}, after {duration(outcome.seconds)} on {ranks} rank{'s' * (ranks != '1')} "
            f"({', '.join(outcome.devices)}). {how_good(outcome)}"
        )
    return "\n\n".join(sentences) + "\n"


def what_is_trained(outcome: Outcome) -> str:
    """Which networks the plan trains, in words: cut, grown, wide again."""
    plan, ways = outcome.plan, changes(outcome)
    grown = f", {' and '.join(ways)}," if ways else ""
    origins = {"search": "a searched", "random": "a random", "all": "an all-keeping"}
    ranking = plan.ticket.source.ranking if plan.ticket else plan.recipe.draw.ranking
    by = f" by {ranking}" if ranking not in (None, "coefficient") else ""
    ticket = f"{origins[plan.ticket.source.kind if plan.ticket else 'search']} ticket of it{by}"
    if outcome.ends_wide:
        return f"{ticket} is trained first, then the full network{grown.rstrip(',')}"
    if plan.stages[-1].stage.searching:
        return f"the full network{grown} is searched for a ticket{by}"
    return f"{ticket if plan.stages[-1].narrow else 'the full network'}{grown} is trained to the end"


def changes(outcome: Outcome) -> list[str]:
    """What the borders between the stages made of the network, in words: "stacked from 3 to 6 layers".

    Which units it has is left out where that is told of anyhow: for a ticket's cut, and where it ends wide.
    """
    depths: dict[str, list[int]] = {}
    for planned in outcome.plan.stages:
        before, after = (without_coefficients(network) for network in (planned.before, planned.network))
        only_units = dense_config(before) == dense_config(after)
        if before != after and not (only_units and (planned.stage.begin.needs_ticket or outcome.ends_wide)):
            depths.setdefault(planned.stage.begin.done, [before.num_hidden_layers]).append(after.num_hidden_layers)
    return [
        f"{done} from {' to '.join(map(str, layers))} layers" if len({*layers}) > 1 else done
        for done, layers in depths.items()
    ]


def how_good(outcome: Outcome) -> str:
    """How good the network is by the last validation, beside what needs no network."""
    last = outcome.last_validation
    if last is None:
        return "It has not been validated yet."
    said = [
        f"it {part.task} with a loss of {last.scores[f'{part.name}_loss']:.3f} nats, "
        f"{last.scores[f'{part.name}_accuracy']:.1%} of them right; guessing by frequency has a loss of "
        f"{outcome.guessing(part):.3f}."
        for part in outcome.losses
    ]
    said = [f"At its last validation (step {last.step:,} of {last.stage}) " + " And ".join(said)]
    if (reached := outcome.level(last)) is not None:
        said.append(f"So it is {reached}" + (f": {ADVICE}." if reached == "at word frequencies" else "."))
    if outcome.searched_too_soon:
        said.append("Its search ended at word frequencies, where units differ little, and a ticket says little.")
    return " ".join(said)


Rows = list[tuple[str, Callable[[Outcome], str]]]


def table(outcomes: Outcomes, rows: Rows) -> str:
    """One column a run."""
    return markdown_table(
        ["", *outcomes], [[title, *(value(outcome) for outcome in outcomes.values())] for title, value in rows]
    )


def stage_names(outcomes: Outcomes) -> list[str]:
    """The names of all stages, each once."""
    return list(dict.fromkeys(stage.name for outcome in outcomes.values() for stage in outcome.stages))


def of_stage(name: str, value: Callable[[StageOutcome], str | None]) -> Callable[[Outcome], str]:
    """What a run's stage of this name says; a dash where the run has none, or the stage nothing to say yet."""

    def said(outcome: Outcome) -> str:
        return next((value(stage) or "-" for stage in outcome.stages if stage.name == name), "-")

    return said


def score(name: str) -> Callable[[StageOutcome], str | None]:
    """One of the numbers of a stage's last validation; None where there is none, or it has no such number."""

    def said(stage: StageOutcome) -> str | None:
        if stage.validation is None or name not in stage.validation.scores:
            return None
        where = "" if stage.over else f" (step {stage.validation.step:,} of {stage.planned.stage.steps:,})"
        return f"{stage.validation.scores[name]:.4f}{where}"

    return said


def losses(outcomes: Outcomes) -> list[LossPart]:
    """The parts of all runs' losses, each once."""
    return list(dict.fromkeys(part for outcome in outcomes.values() for part in outcome.losses))


def results(outcomes: Outcomes) -> str:
    """Size, loss and accuracy of each run's network at the plan's end."""
    rows: Rows = [
        ("parameters of the trained network", lambda outcome: f"{count_parameters(outcome.network):,}"),
        ("heads per layer", lambda outcome: " ".join(map(str, outcome.network.heads))),
        ("neurons per layer", lambda outcome: " ".join(map(str, outcome.network.neurons))),
    ]
    for name in stage_names(outcomes):
        stages = [stage for outcome in outcomes.values() for stage in outcome.stages if stage.name == name]
        when = "end of" if all(stage.over for stage in stages if stage.validation) else "last in"
        for part in losses(outcomes):
            for kind in ("loss", "accuracy"):
                value = of_stage(name, score(f"{part.name}_{kind}"))
                rows.append((f"validation {kind} of {part.title}, {when} {name}", value))
    rows.append(("unigram cross-entropy of the text", lambda outcome: f"{outcome.unigram_cross_entropy:.4f}"))
    return table(outcomes, rows)


def times(outcomes: Outcomes) -> str:
    """Seconds of a step, hours in all, and what was saved, by operations, by the paper's protocol and by the clock."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    def saved(outcome: Outcome, name: str) -> str:
        return percent(getattr(outcome.savings, name) if outcome.savings else None)

    def seconds(stage: StageOutcome) -> str | None:
        return None if stage.median_seconds is None else f"{stage.median_seconds:.3f}"

    rows: Rows = [(f"median seconds of a step, {name}", of_stage(name, seconds)) for name in stage_names(outcomes)]
    on_gpus = any(device != "CPU" for outcome in outcomes.values() for device in outcome.devices)
    rows += [
        ("running time", lambda outcome: duration(outcome.seconds)),
        ("GPU-hours" if on_gpus else "rank-hours (no GPU)", lambda outcome: f"{outcome.accelerator_hours:.2f}"),
        (
            "dense steps are timed in",
            lambda outcome: outcome.savings.dense_stage.stage.name if outcome.savings else "-",
        ),
        ("operations saved", lambda outcome: percent(outcome.operations_saved)),
        ("time saved, the paper's protocol", lambda outcome: saved(outcome, "time_saved")),
        ("time saved, by the clock (dense estimated)", lambda outcome: saved(outcome, "by_the_clock")),
    ]
    changed = {name: outcome for name, outcome in outcomes.items() if outcome.changed_layout}
    notes = [f"\n**{name}**: time saved is not measured: {why_not_timed(each)}.\n" for name, each in changed.items()]
    return table(outcomes, rows) + "".join(notes) + PROTOCOL + against_dense(outcomes)


PROTOCOL = """
*The paper's protocol*: 1 - (search + trained steps * r) / dense steps, where r is the median time of a step of phase
1's last stage over that of a dense step with the same batches; steps of the stages before that one are weighed by
their median times, those of phase 2 by their operations; waiting for data is left out. *By the clock*: the
whole running time of this run, with validation, checkpoints and repeated steps, against dense training estimated from
the median dense step alone, so a low figure.
"""


def against_dense(outcomes: Outcomes) -> str:
    """Where a finished dense run stands beside others of the same conditions: what they saved of its running time."""
    timed = {name: each for name, each in outcomes.items() if each.finished and not each.changed_layout}
    dense = {name: outcome for name, outcome in timed.items() if outcome.plan.is_dense}
    if len(dense) != 1:
        return ""
    ((name, measured),) = dense.items()
    said = "; ".join(
        f"{other} {1 - each.seconds / measured.seconds:.1%}"
        for other, each in timed.items()
        if other != name and each.conditions == measured.conditions and not each.plan.stages[-1].stage.searching
    )
    return f"\nRunning time saved against the measured dense run {name}: {said}.\n" if said else ""


def split_table(outcomes: Outcomes) -> str:
    """The numbers of the picture, in milliseconds."""
    rows, header = [], ["milliseconds"]
    for name, outcome in outcomes.items():
        for stage in (stage for stage in outcome.stages if stage.time_split):
            header = ["milliseconds", *(part.replace("_", " and ") for part in stage.time_split)]
            title = stage.name if len(outcomes) == 1 else f"{name}, {stage.name}"
            rows.append([title, *(f"{1000 * value:.1f}" for value in stage.time_split.values())])
    return markdown_table(header, rows)


def interruptions(outcomes: Outcomes) -> str:
    """Restarts and what they cost."""
    if not any(outcome.interruptions.restarts for outcome in outcomes.values()):
        return "None.\n"
    return table(
        outcomes,
        [
            ("restarts", lambda outcome: str(outcome.interruptions.restarts)),
            ("steps done twice", lambda outcome: f"{outcome.interruptions.lost_steps:,}"),
            ("time for those", lambda outcome: duration(outcome.interruptions.lost_seconds)),
            ("time to start again", lambda outcome: duration(outcome.interruptions.starting_seconds)),
            (
                "time standing still, not part of the running time",
                lambda outcome: duration(outcome.interruptions.down_seconds),
            ),
        ],
    )


def measured_on(attention: Attention) -> str:
    """Which samples the networks were looked at with; of each run where they differ."""
    samples = {name: f"{mass.samples} held-out samples of {mass.length} tokens" for name, mass in attention.items()}
    if len({*samples.values()}) == 1:
        return next(iter(samples.values()))
    return " and ".join(f"{text} ({name})" for name, text in samples.items())


def attention_section(attention: Attention) -> str:
    """The picture and the numbers of the attention mass, and why one looks at them."""
    layers = max(len(mass.shares["near"]) for mass in attention.values())

    def row(title: str, shares: Sequence[float], evenly: float) -> list[str]:
        missing = ["-"] * (layers - len(shares))
        return [title, *(f"{share:.3f}" for share in shares), *missing, f"{evenly:.3f}"]

    rows = [
        row(f"{name}, {title}", mass.shares[keys], mass.uniform[keys])
        for name, mass in attention.items()
        for keys, title in (("near", "within two positions"), ("cls", "on [CLS]"))
    ]
    header = ["share of the attention", *(f"layer {layer}" for layer in range(layers)), "spread evenly"]
    return (
        "Gong et al. (2019) found that heads of a trained BERT look mostly at neighbouring tokens and at [CLS], in low "
        "and in high layers alike; that likeness is why a deep network may be grown by stacking a shallow one. "
        f"Measured on {measured_on(attention)}, mean over heads and tokens. "
        "A token is its own neighbour. Dashed, and in the last column: attention that is spread evenly.\n\n"
        f"{image('attention.png')}\n{markdown_table(header, rows)}"
    )
