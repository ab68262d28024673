"""GLUE's scores against their textbook definitions, counted by hand on random data."""

import math

import numpy as np
import pytest

from earlybert.finetune.results import spread
from earlybert.finetune.tasks.metrics import accuracy_and_f1, correlations, matthews


def counted(predicted: list[int], label: list[int]) -> tuple[int, int, int, int]:
    pairs = list(zip(predicted, label, strict=True))
    return pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1)), pairs.count((0, 0))


@pytest.mark.parametrize("seed", range(5))
def test_classification_scores_are_those_counted_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, predicted = rng.integers(0, 2, 57), rng.integers(0, 2, 57)
    true_positive, false_positive, false_negative, true_negative = counted(predicted.tolist(), label.tolist())
    found = accuracy_and_f1(predicted, label) | matthews(predicted, label)
    assert found["accuracy"] == pytest.approx((true_positive + true_negative) / 57)
    assert found["f1"] == pytest.approx(2 * true_positive / (2 * true_positive + false_positive + false_negative))
    sums = (
        (true_positive + false_positive)
        * (true_positive + false_negative)
        * (true_negative + false_positive)
        * (true_negative + false_negative)
    )
    expected = (true_positive * true_negative - false_positive * false_negative) / math.sqrt(sums)
    assert found["matthews"] == pytest.approx(expected)


def test_one_class_only_scores_zero_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    ones, label = np.ones(6, dtype=int), np.array([0, 1, 0, 1, 1, 0])
    assert matthews(ones, label)["matthews"] == 0
    assert accuracy_and_f1(np.zeros(3, dtype=int), np.zeros(3, dtype=int)) == {"accuracy": 1.0, "f1": 0.0}
    assert correlations(np.full(4, 2.5), np.array([0.0, 1.0, 2.0, 5.0])) == {"pearson": 0.0, "spearman": 0.0}
    assert correlations(np.array([2.5]), np.array([5.0])) == {"pearson": 0.0, "spearman": 0.0}
    assert not list(recwarn)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_the_textbook_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice(np.arange(0, 5.2, 0.2), 40)  # many ties, as STS-B has
    predicted = label + rng.normal(size=40)

    def pearson(first: np.ndarray, second: np.ndarray) -> float:
        first, second = first - first.mean(), second - second.mean()
        return float((first * second).sum() / math.sqrt((first**2).sum() * (second**2).sum()))

    def ranks(values: np.ndarray) -> np.ndarray:
        """Rank of a value: those below it, and half of its equals."""
        return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])

    found = correlations(predicted, label)
    assert found["pearson"] == pytest.approx(pearson(predicted, label))
    assert found["spearman"] == pytest.approx(pearson(ranks(predicted), ranks(label)))


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert spread([3.0]) == (3.0, None)
