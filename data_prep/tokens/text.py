"""Tokenised text: all tokens one after the other, and where sentences and documents begin."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from earlybert.data_prep.tokens.arrays import map_array

TOKENS, SENTENCES, DOCUMENTS, COPIES = "tokens.bin", "sentence_bounds.bin", "document_bounds.bin", "copies.bin"
TOKENS_PER_BLOCK = 1 << 22


@dataclass(frozen=True)
class TokenisedText:
    """Documents as tokens, without special tokens; none is empty.

    Attributes:
        tokens: uint16 or uint32 [tokens], all sentences one after the other.
        sentence_bounds: int64 [sentences + 1]; sentence i is `tokens[sentence_bounds[i] : sentence_bounds[i + 1]]`.
        document_bounds: int64 [documents + 1]; document i has the sentences from `document_bounds[i]` to
            `document_bounds[i + 1]`, the latter excluded.
        copies: uint16 [documents]; how often each document enters one pass over the training text.
    """

    tokens: np.ndarray
    sentence_bounds: np.ndarray
    document_bounds: np.ndarray
    copies: np.ndarray

    @classmethod
    def open(cls, folder: Path, dtype: npt.DTypeLike) -> "TokenisedText":
        """Map the files of a folder into memory."""
        return cls(
            map_array(folder / TOKENS, dtype),
            map_array(folder / SENTENCES, np.int64),
            map_array(folder / DOCUMENTS, np.int64),
            map_array(folder / COPIES, np.uint16),
        )

    @cached_property
    def token_bounds(self) -> np.ndarray:
        """int64 [documents + 1]; document i is `tokens[token_bounds[i] : token_bounds[i + 1]]`."""
        return self.sentence_bounds[self.document_bounds]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.document_bounds) - 1

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Stretches of whole documents with about `TOKENS_PER_BLOCK` tokens each: first document, and the one after."""
        first = 0
        while first < len(self):
            full = np.searchsorted(self.token_bounds, self.token_bounds[first] + TOKENS_PER_BLOCK)
            last = min(max(int(full), first + 1), len(self))
            yield first, last
            first = last
