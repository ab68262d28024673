"""The masking function: which positions, how many, replaced by what, and that it is a pure function."""

import numpy as np
import pytest

from earlybert.data_prep.masking import Masked, mask_sample, sample_order
from earlybert.data_prep.tokenizer import SpecialTokens

# Ids in no particular order, as published vocabularies have them.
SPECIAL = SpecialTokens(pad=0, unknown=7, cls=12, sep=5, mask=29)
VOCAB_SIZE = 40
ORDINARY = sorted(set(range(VOCAB_SIZE)) - set(SPECIAL.ids))


def sample(length: int, token: int = 20) -> np.ndarray:
    """[CLS], then one ordinary token repeated with a [SEP] in the middle, then [SEP]."""
    tokens = np.full(length, token, dtype=np.uint16)
    tokens[0], tokens[length // 2], tokens[-1] = SPECIAL.cls, SPECIAL.sep, SPECIAL.sep
    return tokens


def mask(tokens: np.ndarray, index: int = 0, epoch: int = 0, seed: int = 3, max_predictions: int = 80) -> Masked:
    return mask_sample(
        tokens, SPECIAL, VOCAB_SIZE, seed=seed, epoch=epoch, index=index, max_predictions=max_predictions
    )


def equal(first: Masked, second: Masked) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("length", "max_predictions", "expected"),
    # 0.15 * 10 = 1.5 and 0.15 * 30 = 4.5 are halves, rounded up; 0.15 * 128 = 19.2; 0.15 * 512 = 76.8.
    [(4, 20, 1), (9, 20, 1), (10, 20, 2), (30, 20, 5), (128, 20, 19), (512, 80, 77), (512, 20, 20), (128, 3, 3)],
)
def test_number_of_predictions(length: int, max_predictions: int, expected: int) -> None:
    assert len(mask(sample(length), max_predictions=max_predictions).positions) == expected


def test_never_more_predictions_than_eligible_tokens() -> None:
    tokens = np.array([SPECIAL.cls, *[SPECIAL.mask] * 40, 20, SPECIAL.sep, *[SPECIAL.pad] * 20], dtype=np.uint16)
    assert mask(tokens).positions.tolist() == [41]


def test_labels_and_untouched_tokens_are_the_sample() -> None:
    rng = np.random.default_rng(0)
    for index in range(50):
        tokens = sample(64)
        tokens[[3, 9]] = SPECIAL.mask, SPECIAL.pad
        tokens[10:30] = rng.choice([*ORDINARY, SPECIAL.unknown], 20)
        before = tokens.copy()
        masked = mask(tokens, index)
        assert np.array_equal(tokens, before)
        assert np.all(np.diff(masked.positions) > 0)
        assert np.array_equal(masked.labels, tokens[masked.positions])
        assert not set(masked.labels.tolist()) & {SPECIAL.cls, SPECIAL.sep, SPECIAL.pad, SPECIAL.mask}
        untouched = np.setdiff1d(np.arange(64), masked.positions)
        assert np.array_equal(masked.input_ids[untouched], tokens[untouched])
        assert not set(masked.input_ids[masked.positions].tolist()) & {SPECIAL.cls, SPECIAL.sep, SPECIAL.pad}


def test_shares_of_the_three_actions_and_uniform_random_tokens() -> None:
    tokens = sample(128)
    masks = [mask(tokens, index) for index in range(3000)]
    replaced = np.concatenate([masked.input_ids[masked.positions] for masked in masks])
    total = len(replaced)
    assert total == 3000 * 19
    # A random token is by chance the old one in one of 35 cases. Five standard deviations of the binomial.
    for found, share in [
        (np.sum(replaced == SPECIAL.mask), 0.8),
        (np.sum(replaced == 20), 0.1 + 0.1 / len(ORDINARY)),
    ]:
        assert abs(found - share * total) < 5 * np.sqrt(total * share * (1 - share))
    counts = np.bincount(replaced[(replaced != SPECIAL.mask) & (replaced != 20)], minlength=VOCAB_SIZE)
    others = [token for token in ORDINARY if token != 20]
    assert counts[others].sum() == counts.sum()
    expected = counts.sum() / len(others)
    chi_square = np.sum((counts[others] - expected) ** 2 / expected)
    # 33 degrees of freedom: mean 33, standard deviation sqrt(66).
    assert abs(chi_square - 33) < 5 * np.sqrt(66)


def test_every_position_is_as_likely() -> None:
    tokens = sample(32)
    counts = np.bincount(np.concatenate([mask(tokens, index).positions for index in range(8000)]), minlength=32)
    eligible = np.flatnonzero(tokens == 20)
    assert counts.sum() == counts[eligible].sum() == 8000 * 5
    share = 5 / len(eligible)
    assert np.all(np.abs(counts[eligible] - 8000 * share) < 5 * np.sqrt(8000 * share * (1 - share)))


def test_same_arguments_same_mask_whatever_came_before() -> None:
    tokens = sample(128)
    first = mask(tokens, index=5, epoch=2)
    for index in range(4):
        mask(tokens, index)
    assert equal(first, mask(tokens.copy(), index=5, epoch=2))


@pytest.mark.parametrize("other", [{"epoch": 3}, {"index": 6}, {"seed": 4}, {"epoch": 5, "index": 2}])
def test_other_seed_epoch_or_index_gives_another_mask(other: dict[str, int]) -> None:
    tokens, where = sample(128), {"epoch": 2, "index": 5}
    assert not equal(mask(tokens, **where), mask(tokens, **{**where, **other}))


def test_mask_is_the_one_of_earlier_versions() -> None:
    # A checkpoint holds a position in the data, so a resumed run needs the same masks on every machine and version.
    masked = mask(sample(24), index=1, epoch=1)
    assert masked.positions.tolist() == [3, 5, 6, 8]
    assert masked.input_ids[masked.positions].tolist() == [29, 20, 29, 29]


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    order = sample_order(1000, seed=1, epoch=0)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, sample_order(1000, seed=1, epoch=0))
    for other in (np.arange(1000), sample_order(1000, seed=1, epoch=1), sample_order(1000, seed=2, epoch=0)):
        assert np.mean(order == other) < 0.02
