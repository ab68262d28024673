"""The pictures of a run, drawn with matplotlib: curves, attention, where the time went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from earlybert.pretrain.report.attention_mass import AttentionMass


@dataclass(frozen=True)
class Curve:
    """One part of a run's loss against four measures of effort; `xs` has one array per name of `EFFORTS`.

    `stages` and `searching` are, for every loss, the stage it is of and whether that searches. `guessing` is the loss
    of guessing by frequency.
    """

    name: str
    stages: Sequence[str]
    searching: NDArray[np.bool_]
    losses: NDArray[np.float64]
    xs: Mapping[str, NDArray[np.float64]]
    validation_losses: NDArray[np.float64]
    validation_xs: Mapping[str, NDArray[np.float64]]
    guessing: float


EFFORTS = {"steps": "optimizer steps", "tokens": "tokens", "flops": "floating-point operations", "seconds": "seconds"}


def stage_slices(stages: Sequence[str]) -> list[slice]:
    """Where each stage's values lie, of values that are ordered by stage."""
    ends = [index for index in range(1, len(stages)) if stages[index] != stages[index - 1]]
    return [slice(*both) for both in pairwise([0, *ends, len(stages)])] if len(stages) else []


def smoothed(values: NDArray[np.float64], stages: Sequence[str]) -> NDArray[np.float64]:
    """Mean of a thirtieth of the values (five at least) around each, of the same stage alone.

    At a stage's ends it is that of half as many: a single value there would look like a jump.
    """
    half = max(5, len(values) // 30) // 2
    result = np.empty_like(values)
    for part in stage_slices(stages):
        for index in range(part.start, part.stop):
            result[index] = values[max(part.start, index - half) : min(part.stop, index + half + 1)].mean()
    return result


def curves_figure(curves: Sequence[Curve], title: str) -> Figure:
    """Training loss (a line a stage; the search dotted) and validation loss (dots) against every measure of effort.

    Dashed: the loss of guessing by frequency. Upright: where a stage ends, with the name of the next. `title` says
    which part of the loss it is.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (effort, label) in zip(figure.subplots(2, 2).flat, EFFORTS.items(), strict=True):
        for number, curve in enumerate(curves):
            color = f"C{number}"
            losses = smoothed(curve.losses, curve.stages)
            for part in stage_slices(curve.stages):
                style = ":" if curve.searching[part.start] else "-"
                axes.plot(curve.xs[effort][part], losses[part], style, color=color, linewidth=1)
            shown = curve.validation_xs[effort], curve.validation_losses
            axes.plot(*shown, "o", color=color, markersize=5, label=curve.name)
        mark_borders(axes, curves, effort)
        mark_guessing(axes, curves)
        axes.set(xlabel=label, ylabel=f"loss of {title}, nats")
        if effort in ("tokens", "flops"):
            axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].legend(handles=named_lines(figure.axes[0]), title="dots: validation, lines: training")
    return figure


def named_lines(axes: Axes) -> list[Line2D]:
    """Those that have a label. Left to itself a legend leaves out all that begin with "_", as a run's name may."""
    return [line for line in axes.lines if not str(line.get_label()).startswith("_child")]


def mark_borders(axes: Axes, curves: Sequence[Curve], effort: str) -> None:
    """An upright line where a stage ends, with the next one's name; one for all runs that have the same there."""
    borders = {
        (float(curve.xs[effort][after.start - 1]), curve.stages[after.start]): f"C{number}"
        for number, curve in enumerate(curves)
        for after in stage_slices(curve.stages)[1:]
    }
    for (x, name), color in borders.items():
        axes.axvline(x, color=color, linestyle="-.", linewidth=0.7, alpha=0.7)
        top = axes.get_xaxis_transform()
        axes.text(x, 0.98, name, color=color, fontsize=7, rotation=90, va="top", ha="left", transform=top)


def mark_guessing(axes: Axes, curves: Sequence[Curve]) -> None:
    """A line for each corpus; with several of them it has the names of its runs."""
    runs: dict[float, list[str]] = {}
    for curve in curves:
        runs.setdefault(round(curve.guessing, 3), []).append(curve.name)
    for level, names in runs.items():
        of = f", {', '.join(names)}" if len(runs) > 1 else ""
        axes.axhline(level, color="grey", linestyle="--", linewidth=1, label=f"guessing by frequency{of}")


def attention_figure(masses: Mapping[str, AttentionMass]) -> Figure:
    """Per layer the share of attention on near keys and on [CLS], a line a run; dashed: evenly spread attention."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"near": "within two positions", "cls": "on [CLS]"}
    for axes, (keys, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for number, (name, mass) in enumerate(masses.items()):
            axes.plot(mass.shares[keys], "o-", color=f"C{number}", label=name)
            axes.axhline(mass.uniform[keys], color=f"C{number}", linestyle="--", linewidth=1)
        largest = max(max(*mass.shares[keys], mass.uniform[keys]) for mass in masses.values())
        axes.set(title=f"attention {title}", xlabel="layer", ylabel="share of the attention", ylim=(0, 1.1 * largest))
        axes.set_xticks(range(max(len(mass.shares[keys]) for mass in masses.values())))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(handles=named_lines(figure.axes[0]))
    return figure


def time_split_figure(splits: Mapping[str, Mapping[str, float]]) -> Figure:
    """A bar per run and stage: milliseconds of a step by part."""
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(splits)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(splits))
    for part in next(iter(splits.values())):
        milliseconds = np.array([1000 * split[part] for split in splits.values()])
        axes.barh(list(splits), milliseconds, left=left, label=part.replace("_", " + "))
        left += milliseconds
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds of an optimizer step")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure
