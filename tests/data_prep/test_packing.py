"""Rows of short samples: every sample once, none too full, about as few rows as can be."""

import numpy as np
import pytest

from earlybert.data_prep.samples.packing import SAMPLES_PER_WINDOW, pack, pack_shard


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_in_one_row_and_no_row_is_too_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 129, rng.integers(1, 3000))
    rows = pack(sizes, 128)
    assert sorted(sample for row in rows for sample in row) == list(range(len(sizes)))
    assert max(sizes[row].sum() for row in rows) <= 128


def test_rows_are_nearly_as_few_as_the_tokens_allow() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(5, 129, 4000)
    fewest = -(-sizes.sum() // 128)
    # The method never needs more than 11/9 of the fewest possible, plus one (Johnson 1974); usually hardly any more.
    assert len(pack(sizes, 128)) <= 1.02 * fewest + 1


def test_a_sample_goes_where_it_leaves_the_least_room() -> None:
    assert pack(np.array([3, 6, 4, 7]), 10) == [[3, 0], [1, 2]]
    assert pack(np.array([10, 10, 1]), 10) == [[0], [1], [2]]


def test_rows_of_a_shard_keep_to_their_windows() -> None:
    sizes = np.random.default_rng(4).integers(1, 65, 2 * SAMPLES_PER_WINDOW + 5)
    members, bounds = pack_shard(sizes, 64)
    assert np.array_equal(np.sort(members), np.arange(len(sizes)))
    windows = [set((row // SAMPLES_PER_WINDOW).tolist()) for row in np.split(members, bounds[1:-1])]
    assert all(len(window) == 1 for window in windows)
    assert np.all(np.diff([window.pop() for window in windows]) >= 0)
