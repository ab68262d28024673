"""Duplicate documents over a whole corpus: the first in the order of the units stays, whoever read them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

# Documents compared at a time; each takes about 100 bytes while it is.
DOCUMENTS_AT_ONCE = 1 << 21


def duplicates(digests: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which documents repeat an earlier one, in bounded memory.

    Args:
        digests: For each unit, in order, the `Document.digest`s one after the other: uint64 [documents, 2], which may
            be memory-mapped.

    Returns:
        For each unit bool [documents], true for the documents to drop.
    """
    dropped = [np.zeros(len(digest), dtype=bool) for digest in digests]
    repeated = np.zeros(sum(map(len, digests)), dtype=bool)
    for pairs in equal_pairs(digests, dropped):
        repeated[pairs[:, 1]] = True
    return by_unit(repeated, digests)


def equal_pairs(keys: Sequence[np.ndarray], dropped: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Documents with equal keys, each with the next one that has the same.

    Equal keys lie in the same range of values, so the ranges are looked through one after the other.

    Args:
        keys: For each unit uint64 [documents, words], values that spread evenly.
        dropped: For each unit bool [documents], true for documents to pass over.

    Yields:
        int64 [pairs, 2], the earlier and the later document of each pair, counted through all units.
    """
    starts = np.cumsum([0, *map(len, keys)])
    ranges = -(-int(starts[-1]) // DOCUMENTS_AT_ONCE)
    for number in range(ranges):
        rows, documents = [], []
        for unit, drop, start in zip(keys, dropped, starts, strict=False):
            range_of = (unit[:, 0] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)
            inside = np.flatnonzero((range_of == number) & ~drop)
            rows.append(unit[inside])
            documents.append(inside + start)
        row, document = np.concatenate(rows), np.concatenate(documents)
        # Stable: among equal keys the documents stay in the order of the corpus.
        order = np.lexsort(row.T)
        row, document = row[order], document[order]
        equal = np.flatnonzero((row[1:] == row[:-1]).all(axis=1))
        yield np.stack([document[equal], document[equal + 1]], axis=1)


def by_unit(documents: np.ndarray, units: Sequence[np.ndarray]) -> list[np.ndarray]:
    """An array over all documents, cut to the lengths of the units' arrays."""
    return [documents[start:end] for start, end in pairwise(np.cumsum([0, *map(len, units)]))]
