"""From tokenised documents to unmasked samples, as slices of the tokens.

The method is that of BERT's preparation (Devlin et al. 2019, appendix A.2; `create_pretraining_data.py` of Google and
NVIDIA) with these differences: the random second segment always comes from another document (theirs tries ten times,
and labels what it then takes from the same document as the next segment); a shorter aim is drawn for each sample, not
for each document; each document has its own random stream (theirs repeats one seed for every shard).

Sentences of a document lie one after the other, so any segment is a slice of the flat token array, and a sample is five
integers: where its two segments begin and end, and the label.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from earlybert.data_prep.randomness import generator
from earlybert.data_prep.tokenizer import TokenisedText

SHORTEST_AIM = 2
SampleSlices = tuple[int, int, int, int, int]


def split_documents(count: int, *, validation_fraction: float, seed: int) -> dict[str, np.ndarray]:
    """Which documents train and which validate.

    Each document has a random number that depends on the seed and its index; those with the smallest are held out,
    exactly `validation_fraction * count` of them, halves rounded up.

    Returns:
        For `train` and `validation` the indices of the documents: int64, ascending.
    """
    held_out = int(validation_fraction * count + 0.5)
    by_draw = np.argsort(generator(seed, "validation").random(count), kind="stable")
    return {"train": np.sort(by_draw[held_out:]), "validation": np.sort(by_draw[:held_out])}


def plan_samples(
    text: TokenisedText,
    documents: np.ndarray,
    *,
    length: int,
    next_sentence: bool,
    short_sequence_probability: float,
    seed: int,
    duplicate: int,
) -> np.ndarray:
    """Cut the documents of one split into samples, in the order of the documents.

    Args:
        text: The tokenised documents.
        documents: int64 [documents], the indices of the split's documents; at least two with `next_sentence`.
        length: Tokens of the longest sample, [CLS] and [SEP] included.
        next_sentence: Pairs with a label, otherwise single segments.
        short_sequence_probability: Share of the samples that aim at a shorter length.
        seed: Seed of the corpus.
        duplicate: Number of the pass over the documents; each has other segments.

    Returns:
        int64 [samples, 5]: begin and end of segment A, begin and end of segment B in `text.tokens`, and the
        next-sentence label (1: B is random). Without pairs B is empty.
    """
    starts, ends = text.document_bounds[documents], text.document_bounds[documents + 1]
    samples: list[SampleSlices] = []
    for index, document in enumerate(documents.tolist()):
        rng = generator(seed, f"segments {duplicate}", length, document)
        if next_sentence:
            pairs = _pairs(text.sentence_bounds, starts, ends, index, length - 3, short_sequence_probability, rng)
            samples += pairs
        else:
            bounds = text.sentence_bounds[starts[index] : ends[index] + 1].tolist()
            samples += _singles(bounds, length - 2, short_sequence_probability, rng)
    return np.array(samples, dtype=np.int64).reshape(-1, 5)


def _aim(limit: int, short_sequence_probability: float, chance: float, draw: float) -> int:
    """The number of tokens to collect: `limit`, or now and then anything from 2 to `limit`."""
    if chance < short_sequence_probability:
        return SHORTEST_AIM + int(draw * (limit - SHORTEST_AIM + 1))
    return limit


def _singles(
    bounds: list[int], limit: int, short_sequence_probability: float, rng: np.random.Generator
) -> Iterator[SampleSlices]:
    """Whole sentences up to the aim; a sentence that is longer is cut and goes on in the next sample."""
    start = bounds[0]
    while start < bounds[-1]:
        aim = _aim(limit, short_sequence_probability, *rng.random(2).tolist())
        whole = bounds[bisect_right(bounds, start + aim) - 1]
        end = whole if whole > start else start + aim
        yield start, end, end, end, 0
        start = end


def _pairs(
    sentence_bounds: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    index: int,
    limit: int,
    short_sequence_probability: float,
    rng: np.random.Generator,
) -> Iterator[SampleSlices]:
    """Sentences until the aim is reached, cut in two at a random sentence; half of the second parts replaced.

    The sentences that a random second part displaces are used for the next sample.
    """
    bounds = sentence_bounds[starts[index] : ends[index] + 1].tolist()
    first, sentences = 0, len(bounds) - 1
    while first < sentences:
        chance, draw, cut, replace, other, place = rng.random(6).tolist()
        aim = _aim(limit, short_sequence_probability, chance, draw)
        last = min(bisect_left(bounds, bounds[first] + aim), sentences)
        # Segment A ends before the last collected sentence, unless there is only one.
        middle = first + 1 + int(cut * (last - first - 1))
        segment_a = bounds[first], bounds[middle]
        is_random = last - first == 1 or replace < 0.5
        if is_random:
            # Any other document of the split, from any of its sentences on.
            choice = int(other * (len(starts) - 1))
            choice += choice >= index
            begin = starts[choice] + int(place * (ends[choice] - starts[choice]))
            aim_b = max(1, aim - (segment_a[1] - segment_a[0]))
            end = min(np.searchsorted(sentence_bounds, sentence_bounds[begin] + aim_b), ends[choice])
            segment_b = int(sentence_bounds[begin]), int(sentence_bounds[end])
        else:
            segment_b = bounds[middle], bounds[last]
        first = middle if is_random else last
        yield *_truncate(segment_a, segment_b, limit, rng), int(is_random)


def _truncate(
    segment_a: tuple[int, int], segment_b: tuple[int, int], limit: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Take tokens off the longer segment (B where they are equal) until both fit, each by a coin from front or back."""
    length_a, length_b = segment_a[1] - segment_a[0], segment_b[1] - segment_b[0]
    excess = length_a + length_b - limit
    if excess <= 0:
        return *segment_a, *segment_b
    leads = min(excess, abs(length_a - length_b))
    rest = excess - leads
    cut_a = rest // 2 + (leads if length_a > length_b else 0)
    cut_b = excess - cut_a
    front_a, front_b = rng.binomial([cut_a, cut_b], 0.5).tolist()
    return (
        segment_a[0] + front_a,
        segment_a[1] - (cut_a - front_a),
        segment_b[0] + front_b,
        segment_b[1] - (cut_b - front_b),
    )


def with_special_tokens(
    text: TokenisedText, plan: np.ndarray, *, cls: int, sep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples of a plan as `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Returns:
        The tokens of all samples one after the other (dtype of the text), int64 [samples + 1] with the bounds of the
        samples in them, and int32 [samples] with the number of tokens up to the first [SEP], it included.
    """
    size_a, size_b = plan[:, 1] - plan[:, 0], plan[:, 3] - plan[:, 2]
    has_b = size_b > 0
    bounds = np.concatenate([[0], np.cumsum(2 + size_a + size_b + has_b)])
    first_length = (size_a + 2).astype(np.int32)
    tokens = np.empty(bounds[-1], dtype=text.tokens.dtype)
    tokens[bounds[:-1]] = cls
    tokens[bounds[:-1] + first_length - 1] = sep
    tokens[bounds[1:] - 1] = sep
    for (begin, end), length, (a, a_end, b, b_end, _) in zip(
        pairwise(bounds.tolist()), first_length.tolist(), plan.tolist(), strict=True
    ):
        tokens[begin + 1 : begin + length - 1] = text.tokens[a:a_end]
        if b_end > b:
            tokens[begin + length : end - 1] = text.tokens[b:b_end]
    return tokens, bounds, first_length
