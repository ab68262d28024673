"""Masking for the masked-LM objective: of every sample a pure function of (seed, epoch, index).

Shape suffixes: B samples, T tokens of all samples one after the other, E of them that may be predicted, N that are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from earlybert.core.randomness import generators
from earlybert.data_prep.tokens.tokenizer import SpecialTokens


@dataclass(frozen=True)
class Masked:
    """Some samples, masked.

    Attributes:
        input_ids_T: int32, the tokens after masking.
        positions_N: int64, the rows of T to predict, ascending.
        labels_N: int32, the tokens that stood there.
    """

    input_ids_T: np.ndarray
    positions_N: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True)
class Masking:
    """How samples are masked (BERT, Devlin et al. 2019, section 3.1 and appendix A.1).

    Of the tokens to predict, 80 % become [MASK], 10 % stay and 10 % become a random token. Their number counts the
    special tokens in, as in Google's and NVIDIA's preparation: `min(max_predictions, max(1, round(probability *
    length)))`, halves rounded up. Theirs draws random tokens from the whole vocabulary; here none is a special token.

    Attributes:
        special: Ids of the special tokens; [CLS], [SEP], [PAD] and [MASK] are never chosen for prediction.
        vocab_size: Entries of the vocabulary; ids go from 0 to `vocab_size - 1`.
        seed: Seed of the run.
        max_predictions: Upper limit of the predictions in one sample.
        probability: Share of the tokens to predict.
        continues_word: For whole-word masking: bool [vocab_size], true for tokens that go on with the word of the token
            before them. Then all tokens of a word are chosen or none, as far as whole words add up to the number.
    """

    special: SpecialTokens
    vocab_size: int
    seed: int
    max_predictions: int
    probability: float = 0.15
    continues_word: np.ndarray | None = None

    def mask(self, tokens_T: np.ndarray, bounds: np.ndarray, places: Sequence[tuple[int, int]]) -> Masked:
        """Mask some samples.

        Args:
            tokens_T: Integers, the tokens of all samples, special tokens included.
            bounds: int64 [B + 1], where each sample begins and the last ends.
            places: Of every sample the pass over the data, always 0 for static masking, and its index in its split.
        """
        positions_E, bounds_E = self._eligible(tokens_T, bounds)
        wanted_B = self._wanted(bounds, bounds_E)
        chosen, drawn, actions = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0)]
        for rng, rows in self._choices(tokens_T, positions_E, bounds_E, wanted_B, places):
            chosen.append(rows)
            drawn.append(rng.integers(self.vocab_size - len(self.special.ids), size=len(rows), dtype=np.int32))
            actions.append(rng.random(len(rows)))
        positions_N = positions_E[np.sort(np.concatenate(chosen))]
        random_N, action_N = np.concatenate(drawn), np.concatenate(actions)
        for token in self.special.ids:  # ascending, so that each step moves the draw over one special token
            random_N += random_N >= token
        masked_T = tokens_T.astype(np.int32)
        labels_N = masked_T[positions_N]
        shown_N = np.where(action_N < 0.9, labels_N, random_N)
        masked_T[positions_N] = np.where(action_N < 0.8, self.special.mask, shown_N)
        return Masked(masked_T, positions_N, labels_N)

    def count(self, tokens_T: np.ndarray, bounds: np.ndarray, places: Sequence[tuple[int, int]]) -> np.ndarray:
        """How many tokens of each sample `mask` chooses, int64 [B]; nothing is drawn for it unless words stay whole."""
        positions_E, bounds_E = self._eligible(tokens_T, bounds)
        wanted_B = self._wanted(bounds, bounds_E)
        if self.continues_word is None:
            return wanted_B
        choices = self._choices(tokens_T, positions_E, bounds_E, wanted_B, places)
        return np.array([len(rows) for _, rows in choices], dtype=np.int64)

    def _eligible(self, tokens_T: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64: [E], the rows of T that may be chosen, ascending; [B + 1], where each sample's begin among them."""
        special = self.special
        ineligible_T = (tokens_T == special.cls) | (tokens_T == special.sep)
        ineligible_T |= (tokens_T == special.pad) | (tokens_T == special.mask)
        positions_E = np.flatnonzero(~ineligible_T)
        return positions_E, np.searchsorted(positions_E, bounds)

    def _wanted(self, bounds: np.ndarray, bounds_E: np.ndarray) -> np.ndarray:
        """int64 [B], how many tokens of each sample are to be chosen."""
        share_B = (self.probability * np.diff(bounds) + 0.5).astype(np.int64)
        return np.minimum(share_B.clip(1, self.max_predictions), np.diff(bounds_E))

    def _choices(
        self,
        tokens_T: np.ndarray,
        positions_E: np.ndarray,
        bounds_E: np.ndarray,
        wanted_B: np.ndarray,
        places: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[np.random.Generator, np.ndarray]]:
        """Of every sample its generator and, drawn from it, the rows of E to predict, in any order."""
        streams = generators(self.seed, "masking", places)
        if self.continues_word is None:
            limits = pairwise(bounds_E.tolist())
            for rng, (first, end), wanted in zip(streams, limits, wanted_B.tolist(), strict=True):
                yield rng, first + rng.choice(end - first, size=wanted, replace=False, shuffle=False)
            return
        goes_on_E = self.continues_word[tokens_T[positions_E]] & (np.diff(positions_E, prepend=-2) == 1)
        goes_on_E[bounds_E[:-1][np.diff(bounds_E) > 0]] = False
        words = np.append(np.flatnonzero(~goes_on_E), len(positions_E))
        limits = pairwise(np.searchsorted(words, bounds_E).tolist())
        for rng, (first, end), wanted in zip(streams, limits, wanted_B.tolist(), strict=True):
            yield rng, _whole_words(words[first : end + 1].tolist(), wanted, rng)


def _whole_words(bounds: list[int], wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of random words, as many as fit; part of a word only where every word has more than `wanted` rows.

    Args:
        bounds: Where each word begins and the last ends.
        wanted: Number of rows; at most those of all words.
        rng: For the order of the words.
    """
    chosen: list[int] = []
    order = rng.permutation(len(bounds) - 1).tolist()
    for word in order:
        if bounds[word + 1] - bounds[word] <= wanted - len(chosen):
            chosen += range(bounds[word], bounds[word + 1])
            if len(chosen) == wanted:
                break
    if wanted and not chosen:
        chosen = [bounds[order[0]] + row for row in range(wanted)]
    return np.array(chosen, dtype=np.int64)
