"""Documents that resemble each other: MinHash over sequences of five words, in bands (Leskovec et al. 2020, chapter 3).

Two documents that share the fraction s of their sequences agree in at least one of the bands with probability
1 - (1 - s**8)**14: 0.05 at s = 0.5, 0.56 at 0.7, 0.92 at 0.8, 0.9996 at 0.9.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.duplicates import by_unit, equal_pairs

BANDS = 14
HASHES_PER_BAND = 8
WORDS_PER_SEQUENCE = 5
_SEED = 1
# Kana, Han, Thai, Lao, Tibetan, Burmese and Khmer mark no words: there every character counts as one.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# What `\w` leaves out: marks write the vowels of Indic scripts. Those above U+FFFF are rare, and would cost much time.
_MARKS = "".join(point for point in map(chr, range(0x10000)) if unicodedata.category(point)[0] == "M")
_LETTER = rf"[^\W{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}++(?:[{_MARKS}]{_LETTER}*+)*+")
_MULTIPLIERS = np.random.default_rng(_SEED).integers(1, 2**63, HASHES_PER_BAND, dtype=np.uint64) * 2 + 1


def check_library() -> None:
    """Raise UserError when the library for MinHash is not installed."""
    try:
        import rensa  # noqa: F401
    except ImportError:
        raise UserError(
            "cleaning.near_duplicates is true, but the package rensa is missing; pip install rensa."
        ) from None


def minhash_bands(text: str) -> np.ndarray:
    """Hashes of the bands of a document's MinHash: uint64 [BANDS]."""
    from rensa import RMinHash

    words = _WORD.findall(text.lower())
    last = max(1, len(words) - WORDS_PER_SEQUENCE + 1)
    sketch = RMinHash(BANDS * HASHES_PER_BAND, _SEED)
    sketch.update([" ".join(words[start : start + WORDS_PER_SEQUENCE]) for start in range(last)])
    hashes = np.array(sketch.digest(), dtype=np.uint64).reshape(BANDS, HASHES_PER_BAND)
    # Sums and products wrap around at 2**64, which a hash may.
    return (hashes * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)


def near_duplicates(bands: Sequence[np.ndarray], dropped: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which documents resemble an earlier one.

    Documents that agree in a band are tied together, also by way of third ones; of those tied the first stays. Memory
    is bounded but for the pairs that agree, 16 bytes each.

    Args:
        bands: For each unit, in order, the `Document.bands`: uint64 [documents, BANDS], which may be memory-mapped.
        dropped: For each unit bool [documents], true for documents that are dropped already; they count for nothing.

    Returns:
        For each unit bool [documents], true for the documents to drop beyond those.
    """
    pairs_of_bands = [np.zeros((0, 2), dtype=np.int64)]
    for band in range(BANDS):
        pairs_of_bands += equal_pairs([unit[:, band : band + 1] for unit in bands], dropped)
    # Only the documents of pairs take part: numbered anew, in their order.
    documents, pairs = np.unique(np.concatenate(pairs_of_bands), return_inverse=True)
    earlier, later = pairs.reshape(-1, 2).T
    # first[i]: the earliest document known to be tied to the i-th; goes down until nothing changes.
    first = np.arange(len(documents))
    while (first[earlier] != first[later]).any():
        np.minimum.at(first, earlier, first[later])
        np.minimum.at(first, later, first[earlier])
        first = first[first]
    repeated = np.zeros(sum(map(len, bands)), dtype=bool)
    repeated[documents[first < np.arange(len(documents))]] = True
    return by_unit(repeated, bands)
