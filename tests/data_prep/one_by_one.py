"""Masking one sample after the other, as earlier versions did: what the batch's masks are held against."""

import numpy as np

from earlybert.core.randomness import generator
from earlybert.data_prep.samples.masking import Masked
from earlybert.data_prep.tokens.tokenizer import SpecialTokens


def mask_sample(
    input_ids: np.ndarray,
    special: SpecialTokens,
    vocab_size: int,
    *,
    seed: int,
    epoch: int,
    index: int,
    probability: float = 0.15,
    max_predictions: int,
    continues_word: np.ndarray | None = None,
) -> Masked:
    """`Masking.mask` of a single sample."""
    tokens = input_ids.astype(np.int32)
    eligible = np.flatnonzero(
        (tokens != special.cls) & (tokens != special.sep) & (tokens != special.pad) & (tokens != special.mask)
    )
    wanted = min(max_predictions, max(1, int(probability * len(tokens) + 0.5)))
    rng = generator(seed, "masking", epoch, index)
    if continues_word is None:
        chosen = rng.choice(eligible, size=min(wanted, len(eligible)), replace=False, shuffle=False)
    else:
        chosen = _whole_words(eligible, continues_word[tokens[eligible]], wanted, rng)
    positions = np.sort(chosen)
    labels = tokens[positions]
    random_tokens = rng.integers(vocab_size - len(special.ids), size=len(positions), dtype=np.int32)
    for token in special.ids:  # ascending, so that each step moves the draw over one special token
        random_tokens += random_tokens >= token
    action = rng.random(len(positions))
    tokens[positions] = np.where(action < 0.8, special.mask, np.where(action < 0.9, labels, random_tokens))
    return Masked(tokens, positions, labels)


def _whole_words(eligible: np.ndarray, continues: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of random words, as many as fit; part of a word only where every word has more than `wanted` tokens.

    Args:
        eligible: int64 [eligible], positions that may be chosen, ascending.
        continues: bool [eligible], whether the token there goes on with the word before it.
        wanted: Number of positions.
        rng: For the order of the words.
    """
    begins = np.flatnonzero(~continues | (np.diff(eligible, prepend=-2) > 1))
    words = np.split(eligible, begins[1:])
    chosen: list[np.ndarray] = []
    room = wanted
    order = rng.permutation(len(words)).tolist()
    for word in order:
        if len(words[word]) <= room:
            chosen.append(words[word])
            room -= len(words[word])
            if not room:
                break
    return np.concatenate(chosen) if chosen else words[order[0]][:wanted]
