"""The masking function: which positions, how many, replaced by what, and that it is a pure function."""

from typing import Any

import numpy as np
import pytest

from earlybert.data_prep.samples.masking import Masked, Masking
from earlybert.data_prep.tokens.tokenizer import SpecialTokens
from tests.data_prep.one_by_one import mask_sample

# Ids in no particular order, as published vocabularies have them.
SPECIAL = SpecialTokens(pad=0, unknown=7, cls=12, sep=5, mask=29)
VOCAB_SIZE = 40
ORDINARY = sorted(set(range(VOCAB_SIZE)) - set(SPECIAL.ids))


def sample(length: int, token: int = 20) -> np.ndarray:
    """[CLS], then one ordinary token repeated with a [SEP] in the middle, then [SEP]."""
    tokens = np.full(length, token, dtype=np.uint16)
    tokens[0], tokens[length // 2], tokens[-1] = SPECIAL.cls, SPECIAL.sep, SPECIAL.sep
    return tokens


def mask(tokens: np.ndarray, index: int = 0, epoch: int = 0, seed: int = 3, **options: Any) -> Masked:
    masking = Masking(SPECIAL, VOCAB_SIZE, seed, **{"max_predictions": 80, **options})
    return masking.mask(tokens, np.array([0, len(tokens)]), [(epoch, index)])


def equal(first: Masked, second: Masked) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("length", "max_predictions", "expected"),
    # 0.15 * 10 = 1.5 and 0.15 * 30 = 4.5 are halves, rounded up; 0.15 * 128 = 19.2; 0.15 * 512 = 76.8.
    [(4, 20, 1), (9, 20, 1), (10, 20, 2), (30, 20, 5), (128, 20, 19), (512, 80, 77), (512, 20, 20), (128, 3, 3)],
)
def test_number_of_predictions(length: int, max_predictions: int, expected: int) -> None:
    assert len(mask(sample(length), max_predictions=max_predictions).positions_N) == expected


@pytest.mark.parametrize(("probability", "expected"), [(0.05, 5), (0.4, 40), (1.0, 97)])
def test_share_of_predictions_can_be_chosen(probability: float, expected: int) -> None:
    """Of 100 tokens; three of them are special, which leaves 97 at most."""
    assert len(mask(sample(100), probability=probability, max_predictions=100).positions_N) == expected


def test_tokens_that_the_vocabulary_lacks_are_predicted_like_others() -> None:
    tokens = np.array([SPECIAL.cls, *[SPECIAL.unknown] * 28, SPECIAL.sep], dtype=np.uint16)
    assert mask(tokens).labels_N.tolist() == [SPECIAL.unknown] * 5


def test_each_random_token_of_a_sample_is_drawn_anew() -> None:
    """Of 509 predictions about 51 are random; as many draws out of 35 tokens hit 27 different ones on average."""
    masked = mask(sample(512), probability=1.0, max_predictions=512)
    assert len(set(masked.input_ids_T.tolist()) - {20, *SPECIAL.ids}) > 20


def test_never_more_predictions_than_eligible_tokens() -> None:
    tokens = np.array([SPECIAL.cls, *[SPECIAL.mask] * 40, 20, SPECIAL.sep, *[SPECIAL.pad] * 20], dtype=np.uint16)
    assert mask(tokens).positions_N.tolist() == [41]


def test_labels_and_untouched_tokens_are_the_sample() -> None:
    rng = np.random.default_rng(0)
    for index in range(50):
        tokens = sample(64)
        tokens[[3, 9]] = SPECIAL.mask, SPECIAL.pad
        tokens[10:30] = rng.choice([*ORDINARY, SPECIAL.unknown], 20)
        before = tokens.copy()
        masked = mask(tokens, index)
        assert np.array_equal(tokens, before)
        assert np.all(np.diff(masked.positions_N) > 0)
        assert np.array_equal(masked.labels_N, tokens[masked.positions_N])
        assert not set(masked.labels_N.tolist()) & {SPECIAL.cls, SPECIAL.sep, SPECIAL.pad, SPECIAL.mask}
        untouched = np.setdiff1d(np.arange(64), masked.positions_N)
        assert np.array_equal(masked.input_ids_T[untouched], tokens[untouched])
        assert not set(masked.input_ids_T[masked.positions_N].tolist()) & {SPECIAL.cls, SPECIAL.sep, SPECIAL.pad}


def test_shares_of_the_three_actions_and_uniform_random_tokens() -> None:
    tokens = sample(128)
    masks = [mask(tokens, index) for index in range(3000)]
    replaced = np.concatenate([masked.input_ids_T[masked.positions_N] for masked in masks])
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
    counts = np.bincount(np.concatenate([mask(tokens, index).positions_N for index in range(8000)]), minlength=32)
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
    assert masked.positions_N.tolist() == [3, 5, 6, 8]
    assert masked.input_ids_T[masked.positions_N].tolist() == [29, 20, 29, 29]


# --- whole words -----------------------------------------------------------------------------------------------------

CONTINUES = np.zeros(VOCAB_SIZE, dtype=bool)
CONTINUES[30:] = True


def mask_words(tokens: np.ndarray, index: int, max_predictions: int = 80) -> Masked:
    masking = Masking(SPECIAL, VOCAB_SIZE, 3, max_predictions, continues_word=CONTINUES)
    return masking.mask(tokens, np.array([0, len(tokens)]), [(0, index)])


def random_words(rng: np.random.Generator) -> tuple[np.ndarray, list[list[int]]]:
    """A sample of two segments, and the positions of each word in it."""
    tokens, words = [SPECIAL.cls], []
    for _ in range(2):
        # A segment that was cut may begin inside a word.
        if rng.random() < 0.5:
            words.append([len(tokens)])
            tokens.append(int(rng.integers(30, 40)))
        for _ in range(rng.integers(5, 20)):
            size = rng.integers(1, 5)
            words.append(list(range(len(tokens), len(tokens) + size)))
            tokens += [int(rng.choice([1, 2, 3, 20, 25])), *rng.integers(30, 40, size - 1).tolist()]
        tokens.append(SPECIAL.sep)
    return np.array(tokens, dtype=np.uint16), words


def test_whole_words_are_chosen_whole_and_as_many_as_fit() -> None:
    rng = np.random.default_rng(1)
    chosen_sizes, all_sizes = np.zeros(5), np.zeros(5)
    for index in range(800):
        tokens, words = random_words(rng)
        masked = mask_words(tokens, index)
        wanted = max(1, int(0.15 * len(tokens) + 0.5))
        positions = set(masked.positions_N.tolist())
        whole = [word for word in words if set(word) <= positions]
        assert sum(map(len, whole)) == len(positions) <= wanted
        left = [len(word) for word in words if not set(word) & positions]
        assert min(left) > wanted - len(positions), "another word would have fitted"
        for word in words:
            all_sizes[len(word)] += 1
            chosen_sizes[len(word)] += word in whole
    share = chosen_sizes[1:] / all_sizes[1:]
    # What is left at the end is filled with short words, so in samples as short as these they come up more often.
    assert share.min() > 0.1 and share.max() < 0.3, "words of every length are chosen"


def test_part_of_a_word_where_no_whole_one_fits() -> None:
    tokens = np.array([SPECIAL.cls, 20, 31, 32, 33, SPECIAL.sep], dtype=np.uint16)
    for index in range(10):
        assert len(mask_words(tokens, index).positions_N) == 1


def test_the_word_that_is_cut_is_a_random_one() -> None:
    """Two words of four tokens where two may be predicted: the first two of either."""
    tokens = np.array([SPECIAL.cls, 20, 31, 32, 33, 20, 31, 32, 33, SPECIAL.sep], dtype=np.uint16)
    found = {tuple(mask_words(tokens, index).positions_N.tolist()) for index in range(20)}
    assert found == {(1, 2), (5, 6)}


def test_words_are_chosen_wherever_they_stand() -> None:
    """Each of ten words of two tokens, of which one is chosen, comes up about as often."""
    tokens = np.array([SPECIAL.cls, *[20, 31] * 10, SPECIAL.sep], dtype=np.uint16)
    first = [int(mask_words(tokens, index, max_predictions=2).positions_N[0]) for index in range(1000)]
    counts = np.bincount(first, minlength=22)[1:21:2]
    assert counts.sum() == 1000 and np.abs(counts - 100).max() < 5 * np.sqrt(1000 * 0.1 * 0.9)


def test_tokens_of_a_word_are_replaced_independently() -> None:
    tokens = np.array([SPECIAL.cls, *[20, 31] * 60, SPECIAL.sep], dtype=np.uint16)
    both = total = 0
    for index in range(400):
        masked = mask_words(tokens, index)
        replaced = masked.input_ids_T[masked.positions_N].reshape(-1, 2) == SPECIAL.mask
        both += int(replaced.all(axis=1).sum())
        total += len(replaced)
    assert abs(both - 0.64 * total) < 5 * np.sqrt(total * 0.64 * 0.36)


# --- many samples at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("continues_word", [None, CONTINUES], ids=["tokens", "whole words"])
@pytest.mark.parametrize(("probability", "max_predictions"), [(0.15, 80), (0.15, 3), (0.4, 80), (1.0, 80)])
def test_samples_are_masked_as_one_by_one(
    continues_word: np.ndarray | None, probability: float, max_predictions: int
) -> None:
    """Among them samples with hardly a token that may be predicted, or none, at either end too."""
    rng = np.random.default_rng(7)
    samples = [random_words(rng)[0] for _ in range(60)]
    samples += [rng.integers(0, VOCAB_SIZE, size).astype(np.uint16) for size in rng.integers(1, 40, 60)]
    nothing, one = np.full(4, SPECIAL.mask, dtype=np.uint16), np.array([SPECIAL.cls, 35], dtype=np.uint16)
    samples = [nothing, *samples[:80], nothing, one, nothing, *samples[80:], nothing]
    places = list(zip(rng.integers(0, 5, len(samples)).tolist(), rng.permutation(1000).tolist(), strict=False))
    masking = Masking(SPECIAL, VOCAB_SIZE, 11, max_predictions, probability, continues_word)
    bounds = np.cumsum([0, *map(len, samples)])
    found = masking.mask(np.concatenate(samples), bounds, places)
    expected = [
        mask_sample(
            sample,
            SPECIAL,
            VOCAB_SIZE,
            seed=11,
            epoch=epoch,
            index=index,
            probability=probability,
            max_predictions=max_predictions,
            continues_word=continues_word,
        )
        for sample, (epoch, index) in zip(samples, places, strict=True)
    ]
    positions = [start + masked.positions_N for start, masked in zip(bounds, expected, strict=False)]
    assert np.array_equal(found.input_ids_T, np.concatenate([masked.input_ids_T for masked in expected]))
    assert np.array_equal(found.positions_N, np.concatenate(positions))
    assert np.array_equal(found.labels_N, np.concatenate([masked.labels_N for masked in expected]))
    counts = masking.count(np.concatenate(samples), bounds, places)
    assert counts.tolist() == [len(masked.positions_N) for masked in expected]
    assert {0, 1} <= set(counts.tolist())
