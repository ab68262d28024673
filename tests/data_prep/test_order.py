"""The order of the samples: a permutation, readable from anywhere, in blocks."""

import numpy as np
import pytest

from earlybert.data_prep.samples.order import SAMPLES_PER_BLOCK, sample_order

COUNT = 3 * SAMPLES_PER_BLOCK + 1000


@pytest.mark.parametrize("count", [1, 1000, SAMPLES_PER_BLOCK, COUNT])
def test_every_epoch_is_another_permutation(count: int) -> None:
    orders = [sample_order(count, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(orders[0], sample_order(count, seed=1, epoch=0))
    if count > 1:
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert np.mean(orders[one] == orders[other]) < 0.02
        assert np.mean(orders[0] == np.arange(count)) < 0.02


def test_any_stretch_is_a_part_of_the_whole() -> None:
    whole = sample_order(COUNT, seed=5, epoch=3)
    rng = np.random.default_rng(0)
    stretches = np.sort(rng.integers(0, COUNT, (50, 2)), axis=1).tolist()
    for first, last in [(0, COUNT), (0, 0), (COUNT, COUNT), (COUNT - 1, COUNT), *stretches]:
        assert np.array_equal(sample_order(COUNT, seed=5, epoch=3, first=first, last=last), whole[first:last])


def test_neighbours_in_the_order_come_from_one_block() -> None:
    visited = set()
    for epoch in range(40):
        blocks = sample_order(COUNT, seed=5, epoch=epoch) // SAMPLES_PER_BLOCK
        assert np.sum(np.diff(blocks) != 0) == 3
        visited.add(tuple(dict.fromkeys(blocks.tolist())))
    assert len(visited) > 15, "of the 24 orders of four blocks"
    inside = sample_order(COUNT, seed=5, epoch=0)[:1000] % SAMPLES_PER_BLOCK
    assert abs(np.corrcoef(inside, np.arange(1000))[0, 1]) < 0.15
