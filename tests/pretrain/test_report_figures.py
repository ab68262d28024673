"""What is drawn in curves.png: the lines that matplotlib was given, not pixels."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from earlybert.pretrain.report.attention_mass import AttentionMass
from earlybert.pretrain.report.figures import EFFORTS, Curve, attention_figure, curves_figure, smoothed

STAGES = ["search"] * 40 + ["phase1"] * 120 + ["phase2"] * 60
TOKENS = {"search": 10.0, "phase1": 10.0, "phase2": 80.0}


def run(name: str = "ticket", stages: Sequence[str] = STAGES, guessing: float = 6.5, seed: int = 0) -> Curve:
    """Losses around 7, 6 and 5 in the three stages, with noise."""
    levels = {"search": 7.0, "phase1": 6.0, "phase2": 5.0}
    noise = np.random.default_rng(seed).normal(scale=0.2, size=len(stages))
    steps = np.arange(1.0, len(stages) + 1)
    xs = dict.fromkeys(EFFORTS, steps) | {"tokens": np.cumsum([TOKENS[stage] for stage in stages])}
    return Curve(
        name=name,
        stages=list(stages),
        searching=np.array([stage == "search" for stage in stages]),
        losses=np.array([levels[stage] for stage in stages]) + noise,
        xs=xs,
        validation_losses=np.array([6.0, 5.0]),
        validation_xs={effort: values[[80, -1]] for effort, values in xs.items()},
        guessing=guessing,
    )


def xs(line: Line2D) -> NDArray[np.float64]:
    return np.asarray(line.get_xdata(), dtype=float)


def ys(line: Line2D) -> NDArray[np.float64]:
    return np.asarray(line.get_ydata(), dtype=float)


def training_lines(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_linestyle() in ("-", ":") and len(xs(line)) > 2]


def test_the_mean_takes_half_a_window_at_a_border_and_nothing_from_the_other_side() -> None:
    """By hand: five values, so two on each side."""
    values = np.array([9.0, 1.0, 5.0, 3.0, 2.0, 8.0, 4.0, 6.0])
    stages = ["a"] * 5 + ["b"] * 3
    expected = [5.0, 4.5, 4.0, 2.75, 10 / 3, 6.0, 6.0, 6.0]
    assert smoothed(values, stages).tolist() == pytest.approx(expected)


def test_no_stage_begins_or_ends_with_a_single_noisy_value() -> None:
    """The spread of the drawn line at its ends is that of a mean of four at least, over many runs."""
    ends = np.array([smoothed(run(seed=seed).losses, STAGES)[[0, 39, 40, 159, 160, 219]] for seed in range(300)])
    deviations = (ends - ends.mean(axis=0)).std(axis=0)
    assert (deviations < 1.2 * 0.2 / np.sqrt(4)).all()
    assert ends.mean(axis=0) == pytest.approx([7, 7, 6, 6, 5, 5], abs=0.03)


def test_every_stage_is_a_line_of_its_own() -> None:
    for axes, effort in zip(curves_figure([run()], "masked tokens").axes, EFFORTS, strict=True):
        lines = training_lines(axes)
        assert [(len(xs(line)), line.get_linestyle()) for line in lines] == [(40, ":"), (120, "-"), (60, "-")]
        assert np.concatenate([xs(line) for line in lines]).tolist() == run().xs[effort].tolist()
        assert all(np.isfinite(ys(line)).all() for line in lines)


def test_borders_are_marked_where_a_stage_ends() -> None:
    for axes, effort in zip(curves_figure([run()], "masked tokens").axes, EFFORTS, strict=True):
        upright = [xs(line)[0] for line in axes.lines if line.get_linestyle() == "-."]
        ends = [run().xs[effort][39], run().xs[effort][159]]
        assert upright == ends
        assert [(text.get_position()[0], text.get_text()) for text in axes.texts] == [
            (ends[0], "phase1"),
            (ends[1], "phase2"),
        ]


def test_runs_with_the_same_borders_share_their_marks() -> None:
    dense = run("dense", ["phase1"] * 150 + ["phase2"] * 70)
    runs = [run(), run("random", seed=1), dense]
    axes = curves_figure(runs, "masked tokens").axes[0]
    assert [text.get_text() for text in axes.texts] == ["phase1", "phase2", "phase2"]
    assert [text.get_position()[0] for text in axes.texts] == [40, 160, 150]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([6.5, 6.5], {6.5: "guessing by frequency"}),
        ([6.5, 6.9], {6.5: "guessing by frequency, a, b", 6.9: "guessing by frequency, c"}),
    ],
)
def test_one_line_of_guessing_for_each_corpus(others: list[float], expected: dict[float, str]) -> None:
    runs = [run("a"), *(run(name, guessing=guessing) for name, guessing in zip("bc", others, strict=True))]
    for axes in curves_figure(runs, "masked tokens").axes:
        drawn = {ys(line)[0]: line.get_label() for line in axes.lines if line.get_linestyle() == "--"}
        assert drawn == expected


def test_every_run_is_in_the_legend() -> None:
    """Also one whose name begins with an underscore, as matplotlib's names of lines that have none."""
    curves = curves_figure([run("_x"), run("y")], "masked tokens")
    mass = AttentionMass({"near": [0.5], "cls": [0.5]}, {"near": 0.5, "cls": 0.1}, samples=2, length=64)
    attention = attention_figure({"_x": mass, "y": mass})
    for figure, names in ((curves, ["_x", "y", "guessing by frequency"]), (attention, ["_x", "y"])):
        legend = figure.axes[0].get_legend()
        assert legend is not None and [text.get_text() for text in legend.get_texts()] == names


def test_a_run_that_has_only_begun_is_drawn() -> None:
    begun = dataclasses.replace(run(), stages=[], searching=np.array([], dtype=bool), losses=np.array([]))
    empty = dataclasses.replace(begun, xs=dict.fromkeys(EFFORTS, np.array([])))
    axes = curves_figure([empty, run("other")], "masked tokens").axes[0]
    assert len(training_lines(axes)) == 3
