"""From tokenised documents to unmasked samples, as slices of the tokens.

The method is that of BERT's preparation (Devlin et al. 2019, appendix A.2; `create_pretraining_data.py` of Google and
NVIDIA) with these differences: the random second segment always comes from another document (theirs tries ten times,
and labels what it then takes from the same document as the next segment), anywhere in the split (theirs: in the same
shard); a shorter aim is drawn for each sample, not for each document; every stretch of documents has its own random
stream (theirs repeats one seed for every shard). Sentence order is ALBERT's (Lan et al. 2020), but a sentence that
stays alone is cut in two, where theirs gets a random second segment.

Sentences of a document lie one after the other, so any segment is a slice of the flat token array, and a sample is five
integers: where its two segments begin and end, and the label.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from earlybert.data_prep.config import Objective
from earlybert.data_prep.tokens.text import TokenisedText

SHORTEST_AIM = 2
DRAWS = 1 << 12


@dataclass(frozen=True)
class Slices:
    """Samples as slices of a text.

    Attributes:
        slices: int64 [samples, 5]: begin and end of segment A, begin and end of segment B in `text.tokens`, and the
            label: 1 when B is random (`nsp`) or when B stands before A in the text (`sop`). Without pairs B is empty.
        dropped: Tokens of the documents that are in no sample: what truncation took off segments that are not random.
    """

    slices: np.ndarray
    dropped: int

    def usage(self, objective: Objective) -> dict[str, int]:
        """How many tokens went where: into segments that follow the text, random second segments, or nowhere."""
        a, a_end, b, b_end, label = self.slices.T
        random = int((b_end - b)[label == 1].sum()) if objective == "nsp" else 0
        return {
            "tokens_in_order": int((a_end - a + b_end - b).sum()) - random,
            "tokens_random": random,
            "tokens_dropped": self.dropped,
            "labels": int(label.sum()),
        }


def plan_samples(
    text: TokenisedText,
    documents: np.ndarray,
    *,
    length: int,
    objective: Objective,
    short_sequence_probability: float,
    rng: np.random.Generator,
) -> Slices:
    """Cut documents into samples, in the order of the documents.

    Args:
        text: The tokenised documents of one split; at least two for `nsp`.
        documents: int64 [documents], ascending, which of them to cut; random second segments come from all.
        length: Tokens of the longest sample, [CLS] and [SEP] included.
        objective: `nsp` and `sop` make pairs with a label, `full-sentences` single segments.
        short_sequence_probability: Share of the samples that aim at a shorter length.
        rng: Everything random comes from here.
    """
    limit = length - (2 if objective == "full-sentences" else 3)
    chances = _chances(rng, limit, short_sequence_probability)
    if objective == "full-sentences":
        return Slices(np.array(list(_singles(text, documents, chances)), dtype=np.int64).reshape(-1, 5), 0)
    if objective == "nsp":
        rows = np.array(list(_pairs(text, documents, chances)), dtype=np.int64).reshape(-1, 6)
        slices, replaced = rows[:, [0, 1, 1, 2, 3]], rows[:, 3] == 1
        slices[replaced, 2:4] = _random_seconds(text, rows[replaced], rng)
        dropped = _truncate(slices, limit, rng)
        return Slices(slices, int(dropped[:, 0].sum() + dropped[~replaced, 1].sum()))
    rows = np.array(list(_neighbours(text, documents, chances)), dtype=np.int64).reshape(-1, 4)
    slices, swapped = rows[:, [0, 1, 1, 2, 3]], rows[:, 3] == 1
    dropped = _truncate(slices, limit, rng)
    slices[swapped] = slices[swapped][:, [2, 3, 0, 1, 4]]
    left_out = (text.token_bounds[documents + 1] - text.token_bounds[documents]).sum() - (rows[:, 2] - rows[:, 0]).sum()
    return Slices(slices, int(dropped.sum() + left_out))


def _chances(
    rng: np.random.Generator, limit: int, short_sequence_probability: float
) -> Iterator[tuple[int, float, float]]:
    """For one sample after the other: the tokens to collect, and two numbers from 0 to 1, where to cut and a coin."""
    while True:
        for short, draw, cut, coin in rng.random((DRAWS, 4)).tolist():
            yield _aim(limit, short_sequence_probability, short, draw), cut, coin


def _aim(limit: int, short_sequence_probability: float, chance: float, draw: float) -> int:
    """The number of tokens to collect: `limit`, or now and then anything from 2 to `limit`."""
    if chance < short_sequence_probability:
        return SHORTEST_AIM + int(draw * (limit - SHORTEST_AIM + 1))
    return limit


def _sentences(text: TokenisedText, documents: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """The bounds of each document's sentences."""
    for document in documents.tolist():
        first, last = text.document_bounds[document : document + 2].tolist()
        yield document, text.sentence_bounds[first : last + 1].tolist()


def _singles(
    text: TokenisedText, documents: np.ndarray, chances: Iterator[tuple[int, float, float]]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Whole sentences up to the aim; a sentence that is longer is cut and goes on in the next sample."""
    for _, bounds in _sentences(text, documents):
        start = bounds[0]
        while start < bounds[-1]:
            aim, _, _ = next(chances)
            whole = bounds[bisect_right(bounds, start + aim) - 1]
            end = whole if whole > start else start + aim
            yield start, end, end, end, 0
            start = end


def _pairs(
    text: TokenisedText, documents: np.ndarray, chances: Iterator[tuple[int, float, float]]
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Sentences until the aim is reached, cut in two at a random sentence; half of the second parts to be replaced.

    The sentences that a random second part displaces are used for the next sample.

    Yields:
        Begin of the first part, end of the first and begin of the second, end of the second, whether the second is to
        be replaced, the aim, the document.
    """
    for document, bounds in _sentences(text, documents):
        first, sentences = 0, len(bounds) - 1
        while first < sentences:
            aim, cut, coin = next(chances)
            last = min(bisect_left(bounds, bounds[first] + aim, first), sentences)
            # The first part ends before the last collected sentence, unless there is only one.
            middle = first + 1 + int(cut * (last - first - 1))
            replaced = last - first == 1 or coin < 0.5
            yield bounds[first], bounds[middle], bounds[last], int(replaced), aim, document
            first = middle if replaced else last


def _neighbours(
    text: TokenisedText, documents: np.ndarray, chances: Iterator[tuple[int, float, float]]
) -> Iterator[tuple[int, int, int, int]]:
    """Sentences until the aim is reached, cut in two at a random sentence; a single one is cut inside.

    Yields:
        Begin of the first part, end of the first and begin of the second, end of the second, whether to swap them. A
        sentence of one token that stays alone is left out.
    """
    for _, bounds in _sentences(text, documents):
        first, sentences = 0, len(bounds) - 1
        while first < sentences:
            aim, cut, coin = next(chances)
            last = min(bisect_left(bounds, bounds[first] + aim, first), sentences)
            begin, end = bounds[first], bounds[last]
            middle = bounds[first + 1 + int(cut * (last - first - 1))]
            if last - first == 1:
                middle = begin + 1 + int(cut * (end - begin - 1))
            if middle < end:
                yield begin, middle, end, int(coin < 0.5)
            first = last


def _random_seconds(text: TokenisedText, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For rows of `_pairs` a second segment from any other document, from any of its sentences on.

    Returns:
        int64 [rows, 2], begin and end; it reaches what the aim leaves beside the first segment, if the document does.
    """
    begin_a, end_a, aim, document = rows[:, 0], rows[:, 1], rows[:, 4], rows[:, 5]
    choice = (rng.random(len(rows)) * (len(text) - 1)).astype(np.int64)
    choice += choice >= document
    first, last = text.document_bounds[choice], text.document_bounds[choice + 1]
    sentence = first + (rng.random(len(rows)) * (last - first)).astype(np.int64)
    begin = text.sentence_bounds[sentence]
    wanted = begin + np.maximum(1, aim - (end_a - begin_a))
    end = text.sentence_bounds[np.minimum(np.searchsorted(text.sentence_bounds, wanted), last)]
    return np.stack([begin, end], axis=1)


def _truncate(slices: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Take tokens off the longer segment (B where they are equal) until both fit, each by a coin from front or back.

    Args:
        slices: int64 [samples, 5] of a plan; changed in place.
        limit: Tokens that both segments may have together.
        rng: For the coins.

    Returns:
        int64 [samples, 2], the tokens taken off A and off B.
    """
    size_a, size_b = slices[:, 1] - slices[:, 0], slices[:, 3] - slices[:, 2]
    excess = np.maximum(size_a + size_b - limit, 0)
    leads = np.minimum(excess, np.abs(size_a - size_b))
    cut_a = (excess - leads) // 2 + np.where(size_a > size_b, leads, 0)
    cuts = np.stack([cut_a, excess - cut_a], axis=1)
    front = rng.binomial(cuts, 0.5)
    slices[:, [0, 2]] += front
    slices[:, [1, 3]] -= cuts - front
    return cuts


def with_special_tokens(
    text: TokenisedText, slices: np.ndarray, *, cls: int, sep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples of a plan as `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Returns:
        The tokens of all samples one after the other (dtype of the text), int64 [samples + 1] with the bounds of the
        samples in them, and int32 [samples] with the number of tokens up to the first [SEP], it included.
    """
    size_a, size_b = slices[:, 1] - slices[:, 0], slices[:, 3] - slices[:, 2]
    has_b = size_b > 0
    bounds = np.concatenate([[0], np.cumsum(2 + size_a + size_b + has_b)])
    first_length = (size_a + 2).astype(np.int32)
    tokens = np.empty(bounds[-1], dtype=text.tokens.dtype)
    tokens[bounds[:-1]] = cls
    tokens[bounds[:-1] + first_length - 1] = sep
    tokens[bounds[1:] - 1] = sep
    for (begin, end), length, (a, a_end, b, b_end, _) in zip(
        pairwise(bounds.tolist()), first_length.tolist(), slices.tolist(), strict=True
    ):
        tokens[begin + 1 : begin + length - 1] = text.tokens[a:a_end]
        if b_end > b:
            tokens[begin + length : end - 1] = text.tokens[b:b_end]
    return tokens, bounds, first_length
