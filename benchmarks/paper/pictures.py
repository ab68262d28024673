"""The paper's figures that show scores."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def score_figure(
    title: str, x_label: str, y_label: str, lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]]
) -> Figure:
    """Means over seeds, and their standard deviations as bars; a line is (x, its scores by seed) from left to right."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        xs, values = zip(*points, strict=True)
        spreads = [statistics.stdev(scores) if len(scores) > 1 else 0.0 for scores in values]
        axes.errorbar(xs, [statistics.mean(scores) for scores in values], spreads, marker="o", capsize=3, label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    return figure
