"""What came of the race: validation curves against every effort, and how soon the dense run's end is met."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from earlybert.core.files import read_json
from earlybert.pretrain.report.timeline import clock, read_lines

# Steps and FLOPs alone, the run's own clock, and steps at the median time of their shape.
EFFORTS = {
    "steps": "optimizer steps",
    "flops": "FLOPs",
    "clock": "seconds by the clock",
    "medians": "seconds, median steps",
}


def curve(run: Path, step_seconds: Mapping[str, float]) -> dict[str, list[float]]:
    """Validation loss and accuracy of a run with every measure of what was spent until then, searching included.

    `medians` counts every step at the median time of its shape, `step_seconds` by stage, and neither validation,
    checkpoints nor starting. `clock` has all of these.
    """
    lines = read_lines(run)
    running = clock(lines)
    costs = {stage["name"]: stage["flops_per_step"] for stage in read_json(run / "plan.json")["stages"]}
    found: dict[str, list[float]] = {name: [] for name in (*EFFORTS, "loss", "accuracy")}
    before = {"flops": 0.0, "medians": 0.0}
    spent = dict(before)
    stage = ""
    for line, seconds in zip(lines, running, strict=True):
        if line["kind"] != "validation":
            continue
        if line["stage"] != stage:
            stage, before = line["stage"], spent
        spent = {
            "flops": before["flops"] + line["step"] * costs[stage],
            "medians": before["medians"] + line["step"] * step_seconds[stage],
        }
        found["steps"].append(line["global_step"])
        found["flops"].append(spent["flops"])
        found["clock"].append(seconds)
        found["medians"].append(spent["medians"])
        found["loss"].append(line["masked_loss"])
        found["accuracy"].append(line["masked_accuracy"])
    return found


def reached(curve: Mapping[str, Sequence[float]], effort: str, loss: float) -> float | None:
    """Effort until the loss is met for the first time, between two validations on a straight line; None if never."""
    xs, losses = curve[effort], curve["loss"]
    for index, value in enumerate(losses):
        if value <= loss:
            if index == 0:
                return xs[0]
            share = (losses[index - 1] - loss) / (losses[index - 1] - value)
            return xs[index - 1] + share * (xs[index] - xs[index - 1])
    return None


def race(curves: Mapping[str, Mapping[int, dict[str, list[float]]]]) -> dict[str, Any]:
    """Per arm, against the dense run of the same seed: final scores, what was spent, when the dense loss was met.

    Every number is a list, one entry a seed. `dense_loss_then` is the dense run's loss after the seconds that the whole
    arm took (medians).
    """
    table: dict[str, Any] = {}
    for name, by_seed in curves.items():
        rows: dict[str, list[Any]] = {}
        for seed, mine in sorted(by_seed.items()):
            dense = curves["dense"].get(seed)
            if dense is None:
                continue
            entry: dict[str, Any] = {"seed": seed, "loss": mine["loss"][-1], "accuracy": mine["accuracy"][-1]}
            for effort in EFFORTS:
                met = reached(mine, effort, dense["loss"][-1])
                entry[effort] = mine[effort][-1] / dense[effort][-1]
                entry[f"{effort}_to_dense_loss"] = None if met is None else met / dense[effort][-1]
            entry["dense_loss_then"] = float(np.interp(mine["medians"][-1], dense["medians"], dense["loss"]))
            for key, value in entry.items():
                rows.setdefault(key, []).append(value)
        if rows:
            table[name] = rows
    return table


def spread(values: Sequence[float | None], form: str) -> str:
    """Mean, and with several seeds the standard deviation; how many of them never got there."""
    there = [value for value in values if value is not None]
    if not there:
        return "not reached"
    text = format(statistics.fmean(there), form)
    if len(there) > 1:
        text += f" ± {format(statistics.stdev(there), form)}"
    return text + (f" ({len(there)} of {len(values)})" if len(there) < len(values) else "")


def rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The table that is printed; a header first."""
    header = ["arm", "seeds", "loss", "accuracy", "FLOPs", "seconds", "clock", "to dense's loss: seconds", "clock"]
    lines = [[*header, "dense's loss then"]]
    for name, arm in table.items():
        lines.append(
            [
                name,
                str(len(arm["seed"])),
                spread(arm["loss"], ".4f"),
                spread(arm["accuracy"], ".4f"),
                *(spread(arm[effort], ".3f") for effort in ("flops", "medians", "clock")),
                *(spread(arm[f"{effort}_to_dense_loss"], ".3f") for effort in ("medians", "clock")),
                spread(arm["dense_loss_then"], ".4f"),
            ]
        )
    return lines


def figure(curves: Mapping[str, Mapping[int, dict[str, list[float]]]], seed: int) -> Figure:
    """Validation loss against every measure of effort, a line an arm, for one seed; dashed: the dense run's end."""
    picture = Figure(figsize=(13, 9), layout="constrained")
    shown = {name: by_seed[seed] for name, by_seed in curves.items() if seed in by_seed}
    for axes, (effort, label) in zip(picture.subplots(2, 2).flat, EFFORTS.items(), strict=True):
        for number, (name, found) in enumerate(shown.items()):
            # Ten colours, so a second round of them has another style.
            style = "--" if name == "random ticket" else "-" if number < 10 else "-."
            axes.plot(found[effort], found["loss"], style, color=f"C{number}", label=name, linewidth=1.2)
        end = shown["dense"]["loss"][-1]
        axes.axhline(end, color="C0", linestyle=":", linewidth=1)
        axes.set(xlabel=label, ylabel="validation loss, nats", ylim=(end - 0.1, end + 1.2))
        axes.grid(alpha=0.3)
    picture.axes[0].legend(fontsize=8)
    return picture
