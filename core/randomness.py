"""Independent random streams, each a pure function of a seed, a purpose and a position."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
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


def generators(seed: int, purpose: str, positions: Iterable[Sequence[int]]) -> Iterator[np.random.Generator]:
    """For each position what `generator` gives, in a tenth of the time: it is one, set anew when the next is taken."""
    philox = np.random.Philox(key=_key(seed, purpose))
    shared, state = np.random.Generator(philox), philox.state
    counter = state["state"]["counter"]
    for position in positions:
        for word, value in enumerate(position, start=1):
            counter[word] = value
        philox.state = state
        yield shared


def uniform(seed: int, purpose: str, keys: np.ndarray) -> np.ndarray:
    """A number from 0 to 1 for each key, as if drawn at random; it depends on the seed, the purpose and the key.

    Args:
        seed: Any integer.
        purpose: What the numbers are for; other purposes get unrelated numbers.
        keys: uint64 [keys, 2].

    Returns:
        float64 [keys].
    """
    first, second = _key(seed, purpose)
    mixed = _mix(_mix(keys[:, 0] ^ first) + (keys[:, 1] ^ second))
    return (mixed >> np.uint64(11)) * 2.0**-53


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection in which every bit depends on all."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from (seed, purpose, position); the same on every machine, unlike `hash()`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
