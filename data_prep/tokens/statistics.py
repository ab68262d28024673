"""What a model that ignores the context would reach on a corpus, and how well the tokenizer fits it."""

import numpy as np

from earlybert.data_prep.tokens.text import TokenisedText


def token_frequencies(text: TokenisedText, vocab_size: int) -> np.ndarray:
    """How often each token occurs: int64 [vocab_size]."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for first, last in text.blocks():
        tokens = text.tokens[text.token_bounds[first] : text.token_bounds[last]]
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


def unigram_statistics(train: np.ndarray, validation: np.ndarray) -> dict[str, float]:
    """What a model that knows only the tokens' frequencies reaches on the held-out tokens, in nats a token.

    [CLS], [SEP], [PAD] and [MASK] don't stand in the text; [UNK] counts like any token, as it is predicted like any.

    Args:
        train: int64 [vocab_size], how often each token occurs in the training text.
        validation: int64 [vocab_size], the same for the held-out text.

    Returns:
        `unigram_cross_entropy`: of the held-out tokens under the training tokens' frequencies, one added to each count;
        `unigram_entropy`: of the held-out tokens under their own frequencies.
    """
    smoothed = train + 1
    frequencies = validation / validation.sum()
    present = validation > 0
    return {
        "unigram_cross_entropy": float(-frequencies @ np.log(smoothed / smoothed.sum())),
        "unigram_entropy": float(-frequencies[present] @ np.log(frequencies[present])),
    }
