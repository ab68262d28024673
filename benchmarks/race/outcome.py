"""What came of the race: validation curves against every effort, and how soon the references' ends are met."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from earlybert.core.files import read_json
from earlybert.pretrain.report.timeline import read_lines, running_seconds

# Steps and FLOPs alone, the run's own clock, and steps at the median time of their shape.
EFFORTS = {
    "steps": "optimizer steps",
    "flops": "FLOPs",
    "clock": "seconds by the clock",
    "medians": "seconds, median steps",
}

# An arm that ends closer to the cross-entropy of guessing by word frequencies has hardly learnt to use the context.
LEAST_NATS = 1.5

# Where a reference has not been run with the seed of an arm.
NO_SEED = "no such seed"

Curve = dict[str, list[float]]
Curves = Mapping[str, Mapping[int, Curve]]


def curve(run: Path, step_seconds: Mapping[str, float]) -> Curve:
    """Validation loss and accuracy of a run with every measure of what was spent until then, searching included.

    `medians` counts every step at the median time of its shape, `step_seconds` by stage, and neither validation,
    checkpoints nor starting. `clock` has all of these.
    """
    lines = read_lines(run)
    running = running_seconds(lines)
    costs = {stage["name"]: stage["flops_per_step"] for stage in read_json(run / "plan.json")["stages"]}
    found: Curve = {name: [] for name in (*EFFORTS, "loss", "accuracy")}
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


def best(curves: Curves, names: Sequence[str]) -> str | None:
    """Of these arms the one with the lowest mean final loss, over the seeds that all have that were run; None if none.

    Raises SystemExit where they have no seed in common.
    """
    run = {name: curves[name] for name in names if curves.get(name)}
    if not run:
        return None
    seeds = set.intersection(*(set(by_seed) for by_seed in run.values()))
    if not seeds:
        raise SystemExit(f"time_to_loss: {', '.join(run)} have no seed in common; run them with the same --seeds")
    return min(run, key=lambda name: statistics.fmean(run[name][seed]["loss"][-1] for seed in seeds))


def race(curves: Curves, references: Mapping[str, str]) -> dict[str, Any]:
    """Per arm: final scores, what was spent, and when each reference's final loss was met.

    Every number is a list, one entry a seed. What was spent is a share of what the first reference spent with that
    seed; `EFFORT_to_REFERENCE` is a share of that reference's own, None where its loss was never met, NO_SEED where it
    has not been run with that seed.
    """
    table: dict[str, Any] = {}
    base = curves[next(iter(references.values()))]
    for name, by_seed in curves.items():
        rows: dict[str, list[Any]] = {}
        for seed in sorted(by_seed.keys() & base.keys()):
            mine, first = by_seed[seed], base[seed]
            entry: dict[str, Any] = {"seed": seed, "loss": mine["loss"][-1], "accuracy": mine["accuracy"][-1]}
            entry |= {effort: mine[effort][-1] / first[effort][-1] for effort in EFFORTS}
            for title, reference in references.items():
                entry |= shares_to(mine, curves[reference].get(seed), title)
            for key, value in entry.items():
                rows.setdefault(key, []).append(value)
        if rows:
            table[name] = rows
    return table


def shares_to(mine: Curve, theirs: Curve | None, title: str) -> dict[str, float | str | None]:
    """Every effort until another curve's final loss is met, as a share of what that one spent."""
    if theirs is None:
        return {f"{effort}_to_{title}": NO_SEED for effort in EFFORTS}
    met = {effort: reached(mine, effort, theirs["loss"][-1]) for effort in EFFORTS}
    return {
        f"{effort}_to_{title}": None if spent is None else spent / theirs[effort][-1] for effort, spent in met.items()
    }


def verdicts(table: Mapping[str, Any], unigram: float, controls: Mapping[str, str]) -> list[str]:
    """What the table does not prove, in sentences.

    `unigram` is the cross-entropy of guessing by word frequencies; `controls` names the deep network of every shallow
    one.
    """
    means = {name: statistics.fmean(arm["loss"]) for name, arm in table.items()}
    weak = [name for name, loss in means.items() if unigram - loss < LEAST_NATS]
    said = [f"{name}: ends less than {LEAST_NATS} nats below word frequencies, so it proves nothing" for name in weak]
    nothing = "so the table proves nothing about growth with its optimizer"
    for shallow, deep in controls.items():
        if not (seeds := seeds_of(table, shallow) & seeds_of(table, deep)):
            said.append(f"{shallow}: has not been run with a seed of {deep}, {nothing}")
            continue
        ends = {name: mean_loss(table[name], seeds) for name in (shallow, deep)}
        if ends[shallow] <= ends[deep]:
            said.append(f"{shallow}: ends at {ends[shallow]:.4f}, not above the {ends[deep]:.4f} of {deep}, {nothing}")
    return said


def seeds_of(table: Mapping[str, Any], name: str) -> set[int]:
    """The seeds that an arm was run with."""
    return set(table[name]["seed"]) if name in table else set()


def mean_loss(arm: Mapping[str, Any], seeds: set[int]) -> float:
    """Mean final loss of an arm over these seeds."""
    return statistics.fmean(loss for seed, loss in zip(arm["seed"], arm["loss"], strict=True) if seed in seeds)


def spread(values: Sequence[float | str | None], form: str) -> str:
    """Mean, and with several seeds the standard deviation; how many got there, and how many could be compared."""
    compared = [value for value in values if value != NO_SEED]
    there = [float(value) for value in compared if value is not None]
    if not compared:
        return NO_SEED
    text = format(statistics.fmean(there), form) if there else "not reached"
    if len(there) > 1:
        text += f" ± {format(statistics.stdev(there), form)}"
    if 0 < len(there) < len(compared):
        text += f" ({len(there)} of {len(compared)})"
    return text + (f", with {len(compared)} of {len(values)} seeds" if len(compared) < len(values) else "")


def rows(table: Mapping[str, Any], references: Sequence[str], unigram: float) -> list[list[str]]:
    """The table that is printed; a header first."""
    lines = [["arm", "seeds", "loss", "below frequencies", "FLOPs", "seconds", "clock"]]
    lines[0] += [f"to {title}'s loss: {unit}" for title in references for unit in ("seconds", "clock")]
    for name, arm in table.items():
        below = unigram - statistics.fmean(arm["loss"])
        line = [name, str(len(arm["seed"])), spread(arm["loss"], ".4f")]
        line.append(f"{below:.2f}{' (proves nothing)' if below < LEAST_NATS else ''}")
        line += [spread(arm[effort], ".3f") for effort in ("flops", "medians", "clock")]
        for title in references:
            line += [spread(arm[f"{effort}_to_{title}"], ".3f") for effort in ("medians", "clock")]
        lines.append(line)
    return lines


def figure(curves: Curves, seed: int, reference: str) -> Figure:
    """Validation loss against every measure of effort, a line an arm, for one seed; dotted: the reference's end."""
    picture = Figure(figsize=(13, 9), layout="constrained")
    shown = {name: by_seed[seed] for name, by_seed in curves.items() if seed in by_seed}
    for axes, (effort, label) in zip(picture.subplots(2, 2).flat, EFFORTS.items(), strict=True):
        for number, (name, found) in enumerate(shown.items()):
            # Ten colours, so a second round of them has another style.
            style = "--" if name == "random ticket" else "-" if number < 10 else "-."
            axes.plot(found[effort], found["loss"], style, color=f"C{number}", label=name, linewidth=1.2)
        end = shown[reference]["loss"][-1]
        axes.axhline(end, color="C0", linestyle=":", linewidth=1)
        axes.set(xlabel=label, ylabel="validation loss, nats", ylim=(end - 0.1, end + 1.2))
        axes.grid(alpha=0.3)
    picture.axes[0].legend(fontsize=8)
    return picture
