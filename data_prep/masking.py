"""Masking for the masked-LM objective, and the order of the samples: pure functions of (seed, epoch, index)."""

from dataclasses import dataclass

import numpy as np

from earlybert.data_prep.randomness import generator
from earlybert.data_prep.tokenizer import SpecialTokens


@dataclass(frozen=True)
class Masked:
    """One masked sample.

    Attributes:
        input_ids: int32 [length], the tokens after masking.
        positions: int64 [predictions], the positions to predict, ascending.
        labels: int32 [predictions], the tokens that stood there.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


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
) -> Masked:
    """Mask one sample (BERT, Devlin et al. 2019, section 3.1 and appendix A.1).

    Of the tokens to predict, 80 % become [MASK], 10 % stay and 10 % become a random token. Their number counts the
    special tokens in, as in Google's and NVIDIA's preparation: `min(max_predictions, max(1, round(probability *
    length)))`, halves rounded up. Theirs draws random tokens from the whole vocabulary; here none is a special token.

    Args:
        input_ids: Integers [length], special tokens included.
        special: Ids of the special tokens; [CLS], [SEP], [PAD] and [MASK] are never chosen for prediction.
        vocab_size: Entries of the vocabulary; ids go from 0 to `vocab_size - 1`.
        seed: Seed of the run.
        epoch: Pass over the data; always 0 gives static masking.
        index: The sample's index in its split.
        probability: Share of the tokens to predict.
        max_predictions: Upper limit of the predictions in one sample.
    """
    tokens = input_ids.astype(np.int32)
    eligible = np.flatnonzero(
        (tokens != special.cls) & (tokens != special.sep) & (tokens != special.pad) & (tokens != special.mask)
    )
    wanted = min(max_predictions, max(1, int(probability * len(tokens) + 0.5)))
    rng = generator(seed, "masking", epoch, index)
    positions = np.sort(rng.choice(eligible, size=min(wanted, len(eligible)), replace=False, shuffle=False))
    labels = tokens[positions]
    random_tokens = rng.integers(vocab_size - len(special.ids), size=len(positions), dtype=np.int32)
    for token in special.ids:  # ascending, so that each step moves the draw over one special token
        random_tokens += random_tokens >= token
    action = rng.random(len(positions))
    tokens[positions] = np.where(action < 0.8, special.mask, np.where(action < 0.9, labels, random_tokens))
    return Masked(tokens, positions, labels)


def sample_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the samples: int64 [count], a permutation of `range(count)`."""
    return generator(seed, "sample order", epoch).permutation(count)
