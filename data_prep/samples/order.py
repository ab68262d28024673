"""The order in which training visits the samples: a pure function of (seed, epoch), read from it piece by piece."""

from functools import lru_cache

import numpy as np

from earlybert.core.randomness import generator

# Blocks are read as a whole: a megabyte or a few, which disks and network file systems read at full speed.
SAMPLES_PER_BLOCK = 1 << 12


def sample_order(count: int, *, seed: int, epoch: int, first: int = 0, last: int | None = None) -> np.ndarray:
    """A stretch of the order of one epoch, which is a permutation of `range(count)`.

    Neighbours are shuffled in blocks and the blocks among themselves. Samples lie shuffled on disk, so a block is a
    random part of the corpus already.

    Args:
        count: Number of samples.
        seed: Seed of the run.
        epoch: Pass over the data.
        first: Where the stretch begins.
        last: Where it ends, itself excluded; None for the end of the epoch.

    Returns:
        int64 [last - first], indices of samples.
    """
    last = count if last is None else last
    blocks, bounds = _block_order(count, seed, epoch)
    pieces = [np.zeros(0, dtype=np.int64)]
    turn = int(np.searchsorted(bounds, first, side="right")) - 1
    while first < last:
        begin, end = int(bounds[turn]), int(bounds[turn + 1])
        inside = _order_in_block(int(blocks[turn]), end - begin, seed, epoch)
        pieces.append(inside[first - begin : last - begin])
        first, turn = end, turn + 1
    return np.concatenate(pieces)


@lru_cache(maxsize=4)
def _block_order(count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks in the order of their turns, and where in the epoch each turn begins and the last ends."""
    starts = np.arange(0, count, SAMPLES_PER_BLOCK)
    blocks = generator(seed, "block order", epoch).permutation(len(starts))
    sizes = np.minimum(count - starts, SAMPLES_PER_BLOCK)
    return blocks, np.concatenate([[0], np.cumsum(sizes[blocks])])


@lru_cache(maxsize=64)
def _order_in_block(block: int, size: int, seed: int, epoch: int) -> np.ndarray:
    return block * SAMPLES_PER_BLOCK + generator(seed, "order in block", epoch, block).permutation(size)
