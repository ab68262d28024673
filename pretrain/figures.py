"""The pictures of a run, drawn with matplotlib: mask distances, ticket, curves, attention, where the time went.

Shape suffixes: L layers, A heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from earlybert.pretrain.ticket import Ticket, masks

KEPT, CUT = "#2b6ca3", "#e8e8e8"


def mask_distance_figure(steps: Sequence[int], matrices: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Distances between the masks drawn at any two recorded steps, heads and neurons side by side (EarlyBERT Figure 1).

    Each half has its own colours, from 0 to the largest distance between two masks after the first update: before it
    all coefficients are equal and the mask says nothing.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (kind, matrix) in zip(figure.subplots(1, len(matrices)), matrices.items(), strict=True):
        distance_KK = np.asarray(matrix)
        after_KK = distance_KK[1:, 1:] if steps[0] == 0 else distance_KK
        top = max(0.01, float(after_KK.max(initial=0.0)))
        image = axes.imshow(distance_KK, vmin=0, vmax=top, origin="lower")
        ticks = range(0, len(steps), max(1, len(steps) // 6))
        axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
        axes.set_yticks(ticks, [str(steps[tick]) for tick in ticks])
        axes.set(title=f"{kind}: share of the mask that differs", xlabel="step", ylabel="step")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def ticket_figure(ticket: Ticket) -> Figure:
    """Heads (layer by layer, kept ones dark) and how many neurons every layer keeps."""
    head_mask_LA = masks(ticket)["heads"]
    layers, heads = head_mask_LA.shape
    figure = Figure(figsize=(9, 1.8 + 0.22 * layers), layout="constrained")
    left, right = figure.subplots(1, 2)
    for layer in range(layers):
        colours = [KEPT if kept else CUT for kept in head_mask_LA[layer]]
        left.barh([layer] * heads, 0.9, left=np.arange(heads) - 0.45, height=0.85, color=colours)
    left.set(title="heads kept (dark)", xlabel="head", ylabel="layer", xticks=range(heads), yticks=range(layers))
    neurons = [len(kept) for kept in ticket.neurons]
    right.barh(range(layers), [ticket.model.intermediate_size] * layers, height=0.85, color=CUT)
    bars = right.barh(range(layers), neurons, height=0.85, color=KEPT)
    right.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white")
    right.set(title=f"neurons kept of {ticket.model.intermediate_size:,}", xlabel="neurons", yticks=range(layers))
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class Curve:
    """Masked-token loss of one run against four measures of effort; `xs` has one array per name of `EFFORTS`.

    `guessing` is the loss of guessing by frequency: the unigram cross-entropy of the text.
    """

    name: str
    stages: Sequence[str]
    losses: NDArray[np.float64]
    xs: Mapping[str, NDArray[np.float64]]
    validation_losses: NDArray[np.float64]
    validation_xs: Mapping[str, NDArray[np.float64]]
    guessing: float


EFFORTS = {"steps": "optimizer steps", "tokens": "tokens", "flops": "floating-point operations", "seconds": "seconds"}


def smoothed(values: NDArray[np.float64], stages: Sequence[str]) -> NDArray[np.float64]:
    """Mean of the latest thirtieth of the values (five at least) within the same stage."""
    window = max(5, len(values) // 30)
    result = np.empty_like(values)
    first = 0
    for index in range(len(values)):
        if stages[index] != stages[first]:
            first = index
        result[index] = values[max(first, index + 1 - window) : index + 1].mean()
    return result


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """Training loss (line; the search dotted) and validation loss (dots) against every measure of effort.

    Dashed: the loss of guessing by frequency.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (effort, label) in zip(figure.subplots(2, 2).flat, EFFORTS.items(), strict=True):
        for number, curve in enumerate(curves):
            losses, searching = smoothed(curve.losses, curve.stages), np.asarray(curve.stages) == "search"
            for part, style in ((searching, ":"), (~searching, "-")):
                drawn = np.where(part, losses, np.nan)
                axes.plot(curve.xs[effort], drawn, style, color=f"C{number}", linewidth=1)
            shown = curve.validation_xs[effort], curve.validation_losses
            axes.plot(*shown, "o", color=f"C{number}", markersize=5, label=curve.name)
        for level in {curve.guessing for curve in curves}:
            axes.axhline(level, color="grey", linestyle="--", linewidth=1, label="guessing by frequency")
        axes.set(xlabel=label, ylabel="masked-token loss, nats")
        if effort in ("tokens", "flops"):
            axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].legend(title="dots: validation, lines: training")
    return figure


def attention_figure(masses: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Per layer the share of attention on near keys and on [CLS], a line a run; dashed: evenly spread attention."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"near": "within two positions", "cls": "on [CLS]"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for number, (name, mass) in enumerate(masses.items()):
            axes.plot(mass[kind], "o-", color=f"C{number}", label=name)
            axes.axhline(mass["uniform"][kind], color=f"C{number}", linestyle="--", linewidth=1)
        largest = max(max(*mass[kind], mass["uniform"][kind]) for mass in masses.values())
        axes.set(title=f"attention {title}", xlabel="layer", ylabel="share of the attention", ylim=(0, 1.1 * largest))
        axes.set_xticks(range(len(next(iter(masses.values()))[kind])))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
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
