"""Samples, held against the documents that they were cut from."""

from typing import Any

import numpy as np
import pytest

from earlybert.data_prep.config import Objective
from earlybert.data_prep.samples.samples import Slices, _aim, _truncate, plan_samples, with_special_tokens
from earlybert.data_prep.tokens.text import TokenisedText


def make_text(documents: int = 40, longest_sentence: int = 30, sentences: int = 25) -> TokenisedText:
    rng = np.random.default_rng(5)
    document_bounds = np.cumsum([0, *rng.integers(1, sentences, documents)])
    sentence_bounds = np.cumsum([0, *rng.integers(1, longest_sentence, document_bounds[-1])])
    copies = np.ones(documents, dtype=np.uint16)
    return TokenisedText(np.arange(sentence_bounds[-1], dtype=np.uint32), sentence_bounds, document_bounds, copies)


# Every token is its own position, so a slice tells where it comes from.
TEXT = make_text()
# Not all documents, as in a pass that only some enter once more.
DOCUMENTS = np.arange(0, 40, 2)


def full_plan(
    text: TokenisedText = TEXT,
    documents: np.ndarray = DOCUMENTS,
    *,
    length: int = 64,
    objective: Objective = "nsp",
    short_sequence_probability: float = 0.1,
    seed: int = 42,
) -> Slices:
    return plan_samples(
        text,
        documents,
        length=length,
        objective=objective,
        short_sequence_probability=short_sequence_probability,
        rng=np.random.default_rng(seed),
    )


def plan(text: TokenisedText = TEXT, documents: np.ndarray = DOCUMENTS, **changes: Any) -> np.ndarray:
    return full_plan(text, documents, **changes).slices


def document_of(position: int) -> int:
    return int(np.searchsorted(TEXT.token_bounds, position, side="right")) - 1


@pytest.mark.parametrize("length", [8, 20, 64, 300])
def test_segments_follow_each_other_or_come_from_another_document(length: int) -> None:
    samples = plan(length=length)
    boundaries = set(TEXT.sentence_bounds.tolist())
    assert set(samples[:, 4].tolist()) == {0, 1}
    for a, a_end, b, b_end, label in samples.tolist():
        assert a < a_end and b < b_end
        assert (a_end - a) + (b_end - b) <= length - 3
        whole = {a, a_end, b, b_end} <= boundaries
        assert whole or (a_end - a) + (b_end - b) == length - 3, "only a sample that would be too long is truncated"
        document_a, document_b = document_of(a), document_of(b)
        assert document_a in DOCUMENTS
        assert document_of(a_end - 1) == document_a and document_of(b_end - 1) == document_b
        if label:
            assert document_a != document_b
        else:
            assert document_a == document_b
            assert a_end == b if whole else a_end <= b
            assert any(a_end <= boundary <= b for boundary in boundaries), "the segments part at a sentence's end"


def test_no_sentence_is_left_out_where_nothing_is_truncated() -> None:
    # With short sentences and long samples only the sentence at a sample's end can be cut.
    text = make_text(longest_sentence=2)
    covered = np.zeros(len(text.tokens), dtype=int)
    for a, a_end, b, b_end, label in plan(text, short_sequence_probability=0).tolist():
        covered[a:a_end] += 1
        if not label:
            covered[b:b_end] += 1
    chosen = np.concatenate([np.arange(text.token_bounds[d], text.token_bounds[d + 1]) for d in DOCUMENTS])
    assert np.all(covered[chosen] == 1), "displaced sentences are used again, exactly once"
    assert covered.sum() == len(chosen)


def test_half_of_the_second_segments_are_random_and_from_any_document() -> None:
    text = make_text(documents=9, longest_sentence=2, sentences=40000)
    samples = plan(text, np.arange(9), length=16)
    # 13 one-token sentences are collected, so there is always a next segment to take.
    full = samples[(samples[:, 1] - samples[:, 0]) + (samples[:, 3] - samples[:, 2]) >= 2]
    share = full[:, 4].mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(full)) + 9 / len(full)
    random = full[full[:, 4] == 1]
    origin, other = (np.searchsorted(text.token_bounds, random[:, column], side="right") - 1 for column in (0, 2))
    counts = np.bincount((other - origin) % 9, minlength=9)
    assert counts[0] == 0
    expected = len(random) / 8
    # Where B begins must not depend on where A is; documents of very different length are drawn alike.
    by_other = np.bincount(other, minlength=9) / np.array([np.sum(origin != d) / 8 for d in range(9)])
    assert np.all(np.abs(by_other - 1) < 6 / np.sqrt(expected))


def test_share_of_short_samples() -> None:
    text = make_text(documents=4, longest_sentence=2, sentences=20000)
    for objective, limit in (("nsp", 97), ("sop", 97), ("full-sentences", 98)):
        for probability in (0.0, 0.1, 0.5):
            samples = plan(text, np.arange(4), length=100, short_sequence_probability=probability, objective=objective)
            size = (samples[:, 1] - samples[:, 0]) + (samples[:, 3] - samples[:, 2])
            short = np.mean(size < limit)
            # One of the limit - 1 lengths that can be drawn is the full one; documents may end early.
            expected = probability * (1 - 1 / (limit - 1))
            assert abs(short - expected) < 5 * np.sqrt(0.25 / len(samples)) + 8 / len(samples)


def test_short_aims_are_uniform_from_two_to_the_limit() -> None:
    draws = (np.arange(9000) + 0.5) / 9000
    aims = np.array([_aim(10, 0.1, chance=0.0999, draw=draw) for draw in draws])
    assert np.bincount(aims).tolist() == [0, 0, *[1000] * 9]
    assert _aim(10, 0.1, chance=0.1, draw=0.0) == 10


def test_truncation_takes_as_many_as_the_loop_of_bert() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        length_a, length_b, limit = rng.integers(1, 60), rng.integers(1, 60), rng.integers(5, 80)
        slices = np.array([[100, 100 + length_a, 900, 900 + length_b, 0]])
        ((cut_a, cut_b),) = _truncate(slices, int(limit), rng)
        a, a_end, b, b_end, _ = slices[0]
        assert (a_end - a, b_end - b) == (length_a - cut_a, length_b - cut_b)
        while length_a + length_b > limit:
            if length_a > length_b:
                length_a -= 1
            else:
                length_b -= 1
        assert (a_end - a, b_end - b) == (length_a, length_b)


def test_truncation_takes_from_front_and_back_alike() -> None:
    rng = np.random.default_rng(2)
    slices = np.tile([0, 50, 100, 110, 0], (2000, 1))
    _truncate(slices, 40, rng)
    front = slices[:, 0]
    # Twenty coins each: mean 10, variance 5.
    assert abs(front.mean() - 10) < 5 * np.sqrt(5 / 2000)
    assert abs(front.var() - 5) < 1


@pytest.mark.parametrize("short_sequence_probability", [0.0, 0.3])
def test_single_segments_tile_every_document(short_sequence_probability: float) -> None:
    samples = plan(length=24, objective="full-sentences", short_sequence_probability=short_sequence_probability)
    assert np.all(samples[:, 2] == samples[:, 3]) and np.all(samples[:, 4] == 0)
    assert np.all(samples[:, 1] - samples[:, 0] <= 22)
    for document in DOCUMENTS:
        begin, end = TEXT.token_bounds[document], TEXT.token_bounds[document + 1]
        inside = samples[(samples[:, 0] >= begin) & (samples[:, 0] < end)]
        assert inside[0, 0] == begin and inside[-1, 1] == end
        assert np.array_equal(inside[1:, 0], inside[:-1, 1])
    assert sum(samples[:, 1] - samples[:, 0]) == sum(np.diff(TEXT.token_bounds)[DOCUMENTS])


def test_single_segments_are_as_many_whole_sentences_as_fit() -> None:
    boundaries = TEXT.sentence_bounds.tolist()
    for a, a_end, *_ in plan(length=24, objective="full-sentences", short_sequence_probability=0).tolist():
        fitting = [bound for bound in boundaries if a < bound <= min(a + 22, TEXT.token_bounds[document_of(a) + 1])]
        assert a_end == (max(fitting) if fitting else a + 22)


def test_samples_depend_on_the_random_stream_only() -> None:
    first = plan()
    assert np.array_equal(first, plan())
    assert not np.array_equal(first[:20], plan(seed=43)[:20])


@pytest.mark.parametrize("length", [8, 20, 64, 300])
def test_sentence_order_pairs_are_neighbours_and_half_of_them_swapped(length: int) -> None:
    samples = plan(length=length, objective="sop", documents=np.arange(40))
    boundaries = set(TEXT.sentence_bounds.tolist())
    for a, a_end, b, b_end, swapped in samples.tolist():
        assert a < a_end and b < b_end and (a_end - a) + (b_end - b) <= length - 3
        first, second = ((b, b_end), (a, a_end)) if swapped else ((a, a_end), (b, b_end))
        assert document_of(first[0]) == document_of(second[1] - 1)
        whole = (a_end - a) + (b_end - b) < length - 3
        assert first[1] == second[0] if whole else first[1] <= second[0]
        inside_one_sentence = not any(first[0] < boundary < second[1] for boundary in boundaries)
        assert inside_one_sentence or any(first[1] <= boundary <= second[0] for boundary in boundaries)
    share = samples[:, 4].mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(samples))


@pytest.mark.parametrize("objective", ["nsp", "sop", "full-sentences"])
@pytest.mark.parametrize("length", [8, 30, 200])
def test_every_token_is_used_once_or_counted_as_dropped(objective: Objective, length: int) -> None:
    """A brute-force count over the tokens; random second segments are counted apart."""
    found = full_plan(objective=objective, length=length)
    used = np.zeros(len(TEXT.tokens), dtype=int)
    random_tokens = 0
    for a, a_end, b, b_end, label in found.slices.tolist():
        used[a:a_end] += 1
        if objective == "nsp" and label:
            random_tokens += b_end - b
        else:
            used[b:b_end] += 1
    chosen = np.concatenate([np.arange(TEXT.token_bounds[d], TEXT.token_bounds[d + 1]) for d in DOCUMENTS])
    assert used.max() == 1 and used.sum() == used[chosen].sum()
    assert np.sum(used[chosen] == 0) == found.dropped
    assert found.usage(objective) == {
        "tokens_in_order": used.sum(),
        "tokens_random": random_tokens,
        "tokens_dropped": found.dropped,
        "labels": found.slices[:, 4].sum(),
    }
    assert objective != "full-sentences" or found.dropped == 0


def test_special_tokens_frame_the_segments() -> None:
    one = np.ones(1, dtype=np.uint16)
    text = TokenisedText(np.arange(10, 20, dtype=np.uint16), np.array([0, 10]), np.array([0, 1]), one)
    tokens, bounds, first_length = with_special_tokens(text, np.array([[0, 2, 5, 8, 1], [4, 5, 5, 5, 0]]), cls=1, sep=2)
    assert tokens.tolist() == [1, 10, 11, 2, 15, 16, 17, 2, 1, 14, 2]
    assert tokens.dtype == np.uint16
    assert bounds.tolist() == [0, 8, 11]
    assert first_length.tolist() == [4, 3]
