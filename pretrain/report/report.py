"""report.md, report.json and pictures of one run, or of several side by side."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from earlybert.core.errors import UserError
from earlybert.core.files import read_json, whole_file, write_json, write_text
from earlybert.core.progress import say
from earlybert.pretrain.checkpoint.metrics import of_kind
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.network.losses.part import LossPart
from earlybert.pretrain.plan.corpora import run_samples
from earlybert.pretrain.report.attention_mass import AttentionMass, attention_mass
from earlybert.pretrain.report.figures import EFFORTS, Curve, attention_figure, curves_figure, time_split_figure
from earlybert.pretrain.report.outcome import Outcome, read_outcome
from earlybert.pretrain.report.page import losses, page
from earlybert.pretrain.report.timeline import read_lines, running_seconds
from earlybert.pretrain.ticket.figures import mask_distance_figure, ticket_figure
from earlybert.pretrain.train.batches import StepLoader

ATTENTION_SAMPLES = 32


def write_report(runs: list[Path], out: Path) -> dict[str, Outcome]:
    """Writes the report of these runs into `out`; returns what came of them. Raises UserError.

    report.json has the content of one run's outcome, for several {"runs": {name: content}}. All have "attention", where
    a checkpoint is there to look at.
    """
    names = run_names(runs)
    # Everything is read before anything is written.
    outcomes = {name: read_outcome(run) for name, run in names.items()}
    attention = {name: mass for name, run in names.items() if (mass := measure_attention(run)) is not None}
    pictures = draw_pictures(outcomes, attention)
    out.mkdir(parents=True, exist_ok=True)
    for file, figure in pictures.items():
        save_picture(figure, out / file)
    contents = {
        name: outcome.content() | {"attention": attention[name].content() if name in attention else None}
        for name, outcome in outcomes.items()
    }
    write_json(out / "report.json", next(iter(contents.values())) if len(runs) == 1 else {"runs": contents})
    write_text(out / "report.md", page(outcomes, attention, pictures))
    return outcomes


def save_picture(figure: Figure, path: Path) -> None:
    """As PNG of 128 colours, a third as large as of all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with whole_file(path) as temporary:
        Image.open(drawn).convert("RGB").quantize(128).save(temporary, format="png", optimize=True)


def run_names(runs: list[Path]) -> dict[str, Path]:
    """The runs by their folders' names, which must differ."""
    names: dict[str, Path] = {}
    for run in runs:
        name = run.resolve().name
        if name in names:
            raise UserError(f"{run}: has the same name as {names[name]}; runs of one report must have different names")
        names[name] = run
    return names


def measure_attention(run: Path) -> AttentionMass | None:
    """Attention mass of the newest checkpoint's network on held-out samples.

    None where there is no checkpoint yet, or the run's corpus is not there any more.
    """
    trained = newest(run)
    if trained is None:
        return None
    try:
        corpus = run_samples(run, trained.recipe)
    except UserError as error:
        say(f"the report leaves out where attention goes: {error}")
        return None
    samples = min(ATTENTION_SAMPLES, len(corpus.samples("validation", trained.stage.length)))
    loader = StepLoader(
        corpus,
        "validation",
        trained.stage,
        trained.recipe,
        global_batch=samples,
        micro_batch=samples,
        rank=0,
        world_size=1,
    )
    return attention_mass(trained.network(), loader.batch(0, 0), trained.stage.length)


def draw_pictures(outcomes: Mapping[str, Outcome], attention: Mapping[str, AttentionMass]) -> dict[str, Figure]:
    """The figures by file name; what a run does not have (yet) is left out."""
    pictures: dict[str, Figure] = {}
    for index, part in enumerate(losses(outcomes)):
        curves = [curve(name, outcome, part) for name, outcome in outcomes.items() if part in outcome.losses]
        if any(len(drawn.losses) for drawn in curves):
            pictures["curves.png" if index == 0 else f"curves-{part.name}.png"] = curves_figure(curves, part.title)
    if attention:
        pictures["attention.png"] = attention_figure(attention)
    splits = {
        stage.name if len(outcomes) == 1 else f"{name}: {stage.name}": stage.time_split
        for name, outcome in outcomes.items()
        for stage in outcome.stages
        if stage.time_split
    }
    if splits:
        pictures["time_split.png"] = time_split_figure(splits)
    for name, outcome in outcomes.items():
        suffix = "" if len(outcomes) == 1 else f"-{name}"
        if outcome.plan.ticket is not None:
            pictures[f"ticket{suffix}.png"] = ticket_figure(outcome.plan.ticket)
        distances = outcome.run_dir / "search" / "mask_distance.json"
        if distances.is_file():
            stored = read_json(distances)
            steps = stored.pop("steps")
            pictures[f"mask_distance{suffix}.png"] = mask_distance_figure(steps, stored)
    return pictures


def curve(name: str, outcome: Outcome, part: LossPart) -> Curve:
    """A part of the run's loss against every measure of effort."""
    lines = read_lines(outcome.run_dir)
    seconds = running_seconds(lines)
    planned = {stage.name: stage.planned for stage in outcome.stages}
    per_step = {
        "tokens": {name: float(each.stage.tokens_per_step) for name, each in planned.items()},
        "flops": {name: each.flops_per_step for name, each in planned.items()},
    }
    before = {quantity: spent_before(outcome, amounts) for quantity, amounts in per_step.items()}

    def efforts(kind: str) -> dict[str, np.ndarray]:
        timed = [(line, second) for line, second in zip(lines, seconds, strict=True) if line["kind"] == kind]
        xs = {"steps": [line["global_step"] for line, _ in timed], "seconds": [second for _, second in timed]}
        for quantity, amounts in per_step.items():
            xs[quantity] = [
                before[quantity][line["stage"]] + line["step"] * amounts[line["stage"]] for line, _ in timed
            ]
        return {effort: np.array(xs[effort], dtype=float) for effort in EFFORTS}

    train, validation = of_kind(lines, "train"), of_kind(lines, "validation")
    return Curve(
        name=name,
        stages=[line["stage"] for line in train],
        searching=np.array([planned[line["stage"]].stage.searching for line in train], dtype=bool),
        losses=np.array([line[f"{part.name}_loss"] for line in train]),
        xs=efforts("train"),
        validation_losses=np.array([line[f"{part.name}_loss"] for line in validation]),
        validation_xs=efforts("validation"),
        guessing=outcome.guessing(part),
    )


def spent_before(outcome: Outcome, per_step: Mapping[str, float]) -> dict[str, float]:
    """What the run had spent when each stage began, of something that a step of each stage takes so much of."""
    spent, before = 0.0, {}
    for stage in outcome.stages:
        before[stage.name] = spent
        spent += stage.steps * per_step[stage.name]
    return before
