"""Counts of a corpus, and what a model that ignores the context would reach on it."""

from typing import Any

import numpy as np

from earlybert.data_prep.tokenizer import TokenisedText


def count(text: TokenisedText, documents: np.ndarray) -> dict[str, Any]:
    """Documents, sentences and tokens (special tokens excluded) of a split, and an empty table for its samples.

    Args:
        text: The tokenised documents.
        documents: int64 [documents], the indices of the split's documents.
    """
    return {
        "documents": len(documents),
        "sentences": int(np.diff(text.document_bounds)[documents].sum()),
        "tokens": int(np.diff(text.token_bounds)[documents].sum()),
        "samples": {},
    }


def unigram_statistics(text: TokenisedText, splits: dict[str, np.ndarray], vocab_size: int) -> dict[str, float]:
    """What a model that knows only the tokens' frequencies reaches on the held-out tokens, in nats a token.

    [CLS], [SEP], [PAD] and [MASK] don't stand in the text; [UNK] counts like any token, as it is predicted like any.

    Args:
        text: The tokenised documents.
        splits: For `train` and `validation` the indices of the documents.
        vocab_size: Entries of the vocabulary.

    Returns:
        `unigram_cross_entropy`: of the held-out tokens under the training tokens' frequencies, one added to each count;
        `unigram_entropy`: of the held-out tokens under their own frequencies.
    """
    held_out = np.zeros(len(text.document_bounds) - 1, dtype=bool)
    held_out[splits["validation"]] = True
    token_held_out = np.repeat(held_out, np.diff(text.token_bounds))
    counts = np.bincount(text.tokens[token_held_out], minlength=vocab_size)
    train_counts = np.bincount(text.tokens[~token_held_out], minlength=vocab_size) + 1
    frequencies = counts / counts.sum()
    present = counts > 0
    return {
        "unigram_cross_entropy": float(-frequencies @ np.log(train_counts / train_counts.sum())),
        "unigram_entropy": float(-frequencies[present] @ np.log(frequencies[present])),
    }
