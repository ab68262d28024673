"""report.md, report.json and pictures of one run, or of several side by side."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json, write_text
from earlybert.pretrain.checkpoint.export import newest
from earlybert.pretrain.plan.stages import read_plan
from earlybert.pretrain.report.attention_mass import attention_mass
from earlybert.pretrain.report.figures import EFFORTS, Curve, attention_figure, curves_figure, time_split_figure
from earlybert.pretrain.report.page import page
from earlybert.pretrain.report.summary import summarise
from earlybert.pretrain.report.timeline import Lines, clock, of_kind, per_step, read_lines, seen_before
from earlybert.pretrain.ticket.figures import mask_distance_figure, ticket_figure
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train.batches import StepLoader

ATTENTION_SAMPLES = 32


def write_report(runs: list[Path], out: Path) -> dict[str, Any]:
    """Writes the report of these runs into `out`; returns the content of report.json.

    For one run that is its summary (`summarise`), for several {"runs": {name: summary}}. All have "attention", where a
    checkpoint is there to look at. Raises UserError.
    """
    names = run_names(runs)
    # Everything is read before anything is written.
    summaries = {name: summarise(run) for name, run in names.items()}
    for name, run in names.items():
        summaries[name]["attention"] = measure_attention(run)
    plans = {name: read_plan(run) for name, run in names.items()}
    pictures = draw_pictures(names, summaries, plans)
    out.mkdir(parents=True, exist_ok=True)
    for file, figure in pictures.items():
        save_picture(figure, out / file)
    content = next(iter(summaries.values())) if len(runs) == 1 else {"runs": summaries}
    write_json(out / "report.json", content)
    write_text(out / "report.md", page(summaries, plans, pictures))
    return content


def save_picture(figure: Figure, path: Path) -> None:
    """As PNG of 128 colours, a third as large as of all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.open(drawn).convert("RGB").quantize(128).save(temporary, format="png", optimize=True)
    temporary.rename(path)


def run_names(runs: list[Path]) -> dict[str, Path]:
    """The runs by their folders' names, which must differ."""
    names: dict[str, Path] = {}
    for run in runs:
        name = run.resolve().name
        if name in names:
            raise UserError(f"{run}: has the same name as {names[name]}; runs of one report must have different names")
        names[name] = run
    return names


def measure_attention(run: Path) -> dict[str, Any] | None:
    """Attention mass of the newest checkpoint's network on held-out samples; None where there is no checkpoint yet."""
    trained = newest(run)
    if trained is None:
        return None
    samples = min(ATTENTION_SAMPLES, len(trained.corpus.samples("validation", trained.stage.length)))
    loader = StepLoader(
        trained.corpus,
        "validation",
        trained.stage,
        trained.recipe,
        global_batch=samples,
        micro_batch=samples,
        rank=0,
        world_size=1,
    )
    found = attention_mass(trained.network(), loader.load(0).batches[0])
    return found | {"samples": samples, "length": trained.stage.length}


def draw_pictures(names: Mapping[str, Path], summaries: Mapping[str, Any], plans: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by file name; what a run does not have (yet) is left out."""
    pictures: dict[str, Any] = {}
    curves = [curve(name, read_lines(run), plans[name], summaries[name]) for name, run in names.items()]
    if any(len(found.losses) for found in curves):
        pictures["curves.png"] = curves_figure(curves)
    masses = {name: summary["attention"] for name, summary in summaries.items() if summary["attention"]}
    if masses:
        pictures["attention.png"] = attention_figure(masses)
    splits = {
        stage if len(names) == 1 else f"{name}: {stage}": split
        for name, summary in summaries.items()
        for stage, split in summary["time_split"].items()
    }
    if splits:
        pictures["time_split.png"] = time_split_figure(splits)
    for name, run in names.items():
        suffix = "" if len(names) == 1 else f"-{name}"
        if (run / "ticket.json").is_file():
            pictures[f"ticket{suffix}.png"] = ticket_figure(Ticket.load(run / "ticket.json"))
        if (run / "search" / "mask_distance.json").is_file():
            stored = read_json(run / "search" / "mask_distance.json")
            steps = stored.pop("steps")
            pictures[f"mask_distance{suffix}.png"] = mask_distance_figure(steps, stored)
    return pictures


def curve(name: str, lines: Lines, plan: dict[str, Any], summary: dict[str, Any]) -> Curve:
    """The run's losses against every measure of effort."""
    seconds = clock(lines)
    stages = {stage["name"]: stage for stage in plan["stages"]}

    def efforts(kind: str) -> dict[str, np.ndarray]:
        found = [(line, second) for line, second in zip(lines, seconds, strict=True) if line["kind"] == kind]
        xs = {"steps": [line["global_step"] for line, _ in found], "seconds": [second for _, second in found]}
        for quantity in ("tokens", "flops"):
            before = seen_before(plan, summary["steps"], quantity)
            xs[quantity] = [
                before[line["stage"]] + line["step"] * per_step(stages[line["stage"]], quantity) for line, _ in found
            ]
        return {effort: np.array(xs[effort], dtype=float) for effort in EFFORTS}

    train, validation = of_kind(lines, "train"), of_kind(lines, "validation")
    return Curve(
        name,
        [line["stage"] for line in train],
        np.array([line["masked_loss"] for line in train]),
        efforts("train"),
        np.array([line["masked_loss"] for line in validation]),
        efforts("validation"),
        summary["unigram_cross_entropy"],
    )
