"""Independent random streams, each a pure function of a seed, a purpose and a position."""

import hashlib
from functools import lru_cache

import numpy as np


@lru_cache
def _key(seed: int, purpose: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:16], dtype="<u8").astype(np.uint64)


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A generator that depends on its arguments only.

    Philox is a function of a key and a counter (Salmon et al. 2011): the seed and the purpose make the key, the
    position makes the upper words of the counter, and the lowest word is left to count. So streams never overlap.

    Args:
        seed: Any integer.
        purpose: What the numbers are for; other purposes get unrelated streams.
        position: At most three integers from 0 to 2**64 - 1.
    """
    words = [0, *position, *[0] * (3 - len(position))]
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=np.array(words, dtype=np.uint64)))
