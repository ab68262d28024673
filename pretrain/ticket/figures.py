"""A ticket and the distances between masks, drawn with matplotlib.

Shape suffixes: L layers, A heads, K recordings.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from earlybert.pretrain.ticket.ticket import Ticket, masks

KEPT, CUT = "#2b6ca3", "#e8e8e8"


def mask_distance_figure(steps: Sequence[int], matrices: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Distances between the masks drawn at any two recorded steps, heads and neurons side by side (EarlyBERT Figure 1).

    Each half has its own colours, from 0 to the largest distance between two masks after the first update: before it
    the units may all be equal, and then the mask says nothing.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (units, matrix) in zip(figure.subplots(1, len(matrices)), matrices.items(), strict=True):
        distance_KK = np.asarray(matrix)
        after_KK = distance_KK[1:, 1:] if steps[0] == 0 else distance_KK
        top = max(0.01, float(after_KK.max(initial=0.0)))
        image = axes.imshow(distance_KK, vmin=0, vmax=top, origin="lower")
        ticks = range(0, len(steps), max(1, len(steps) // 6))
        axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
        axes.set_yticks(ticks, [str(steps[tick]) for tick in ticks])
        axes.set(title=f"{units}: share of the mask that differs", xlabel="step", ylabel="step")
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
