"""Windows over contexts and answers out of their scores, against brute force and real questions."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from earlybert.core.errors import UserError
from earlybert.finetune.tasks.squad import (
    Question,
    SquadData,
    WindowRule,
    candidates,
    labelled,
    make_windows,
    questions_of,
)
from earlybert.finetune.tasks.squad_scoring import score
from tests.finetune.made_up import tiny_tokenizer

RULE = WindowRule(max_length=20, doc_stride=6, max_query_length=5, n_best=4, max_answer_length=3)
# What BERT's script has.
USUAL = WindowRule(max_length=384, doc_stride=128, max_query_length=64, n_best=20, max_answer_length=30)
CONTEXT = "The old tree is green. A small house, the quick river; walk not the Good stone-table is sad - a river sings."
QUESTION = Question("q", "what is good ?", CONTEXT, ["Good stone"], [CONTEXT.index("Good")])


def test_windows_cover_the_context_and_each_token_has_one_best_window() -> None:
    tokenizer = tiny_tokenizer()
    windows = make_windows([QUESTION], tokenizer, RULE)["q"]
    ids = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    assert len(windows) > 2
    best: dict[tuple[int, int], int] = {}
    for number, window in enumerate(windows):
        row = window.features["input_ids"]
        tokens = ids[number * RULE.doc_stride :][: RULE.max_length - 4 - 3]
        query = tokenizer("what is good ?", add_special_tokens=False)["input_ids"]
        assert row == [2, *query, 3, *tokens, 3]
        assert window.features["token_type_ids"] == [0] * window.first_token + [1] * (len(tokens) + 1)
        for offset, is_best in zip(window.offsets, window.best, strict=True):
            best[offset] = best.get(offset, 0) + is_best
    assert len(best) == len(ids) and set(best.values()) == {1}
    assert windows[-1].offsets[-1][1] == len(CONTEXT)


def test_the_best_window_is_the_one_with_most_context() -> None:
    windows = make_windows([QUESTION], tiny_tokenizer(), RULE)["q"]
    first, second = windows[0], windows[1]
    for index, offset in enumerate(first.offsets):
        if offset not in second.offsets:
            continue
        other = second.offsets.index(offset)
        here = min(index, len(first.offsets) - 1 - index) + 0.01 * len(first.offsets)
        there = min(other, len(second.offsets) - 1 - other) + 0.01 * len(second.offsets)
        assert first.best[index] <= (here >= there)


def test_labels_point_at_the_answer_or_at_cls() -> None:
    found = 0
    for window in make_windows([QUESTION], tiny_tokenizer(), RULE)["q"]:
        row = labelled(window)
        start, end = row["start_positions"], row["end_positions"]
        if (start, end) == (0, 0):
            answer = (QUESTION.starts[0], QUESTION.starts[0] + len("Good stone"))
            assert not (window.offsets[0][0] <= answer[0] and answer[1] <= window.offsets[-1][1])
            continue
        found += 1
        first, last = (window.offsets[place - window.first_token] for place in (start, end))
        assert CONTEXT[first[0] : last[1]] == "Good stone"
    assert found >= 1


@pytest.mark.parametrize("seed", range(4))
def test_candidates_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = make_windows([QUESTION], tiny_tokenizer(), RULE)["q"]
    starts, ends = (rng.normal(size=(len(windows), RULE.max_length)).astype(np.float32) for _ in range(2))
    found = candidates(windows, starts, ends, RULE)
    scores: dict[str, float] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        count = len(window.offsets)
        start, end = (row[window.first_token : window.first_token + count] for row in (start, end))
        for first in range(count):
            for last in range(first, min(count, first + RULE.max_answer_length)):
                allowed = (
                    window.best[first]
                    and (start > start[first]).sum() < RULE.n_best
                    and (end > end[last]).sum() < RULE.n_best
                )
                if allowed:
                    text = CONTEXT[window.offsets[first][0] : window.offsets[last][1]]
                    scores[text] = max(scores.get(text, -np.inf), start[first] + end[last])
    expected = sorted(scores.items(), key=lambda item: -item[1])[: RULE.n_best]
    assert [answer.text for answer in found] == [text for text, _ in expected]
    assert [answer.score for answer in found] == pytest.approx([value for _, value in expected])
    assert sum(answer.probability for answer in found) == pytest.approx(1)


@pytest.mark.parametrize("answer", ["walke\u0301", "Gr\u00e4n\u0323\u0301", "e\u0301\u0302 walk"])
def test_an_answer_keeps_the_accents_that_the_tokenizer_drops(answer: str) -> None:
    """Also those that are characters of their own, at an answer's end and at the context's."""
    for context in (f"The old {answer} is green.", f"The old {answer}"):
        question = Question("q", "what ?", context, [answer], [8])
        rule = dataclasses.replace(USUAL, max_length=40, max_query_length=5)
        (window,) = make_windows([question], tiny_tokenizer(), rule)["q"]
        row = labelled(window)
        starts, ends = np.zeros((2, 1, 40), dtype=np.float32)
        starts[0, row["start_positions"]] = ends[0, row["end_positions"]] = 9
        assert row["start_positions"] > 0
        assert candidates([window], starts, ends, rule)[0].text == answer


@pytest.mark.parametrize(
    "edge", [" ", "\n\t ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2060\u200d", "\u00ad ", "\u200b\u200b"]
)
@pytest.mark.parametrize(
    "context", ["{}old tree is green", "green is the {}old tree{}", "old tree{}", "the{}old tree{} is"]
)
def test_what_the_tokenizer_drops_may_stand_at_an_answers_edge(edge: str, context: str) -> None:
    """Before, white space and zero-width characters at the context's edge made it a question without an answer."""
    context = context.replace("{}", edge)
    answer = (edge if f"{edge}old" in context else "") + "old tree" + (edge if f"tree{edge}" in context else "")
    question = Question("q", "what ?", context, [answer], [context.index(answer)])
    (window,) = make_windows([question], tiny_tokenizer(), RULE)["q"]
    row = labelled(window)
    assert row["start_positions"] > 0
    first, last = (window.offsets[row[name] - window.first_token] for name in ("start_positions", "end_positions"))
    assert context[first[0] : last[1]] == "old tree"


def test_an_answers_edge_may_be_between_two_windows() -> None:
    """Its blank is no token of either; the window that lacks one of its words still has no answer."""
    words = [f"{word}\u200b " for word in ["old", "tree", "green", "small"] * 6]
    context = "".join(words)
    for number in range(1, len(words) - 2):
        start, length = len("".join(words[:number])) - 2, 2 + len("".join(words[number : number + 2]))
        question = Question("q", "what ?", context, [context[start : start + length]], [start])
        windows = make_windows([question], tiny_tokenizer(), RULE)["q"]
        assert len(windows) > 2
        for index, window in enumerate(windows):
            row, first = labelled(window), index * RULE.doc_stride
            whole = first <= number and number + 2 <= first + len(window.offsets)
            place = window.first_token + number - first
            expected = (place, place + 1) if whole else (0, 0)
            assert (row["start_positions"], row["end_positions"]) == expected


def test_no_allowed_span_is_an_empty_answer() -> None:
    windows = make_windows([QUESTION], tiny_tokenizer(), RULE)["q"]
    shape = (len(windows), RULE.max_length)
    backwards = np.zeros(shape, dtype=np.float32)
    starts, ends = backwards.copy(), backwards.copy()
    for row, window in enumerate(windows):
        last = window.first_token + len(window.offsets) - 1
        starts[row, last - 3 : last + 1] = 9
        ends[row, window.first_token : window.first_token + 4] = 9
    assert [answer.text for answer in candidates(windows, starts, ends, RULE)] == [""]


def test_a_stride_that_leaves_tokens_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"doc_stride is 128.*only 61 tokens"):
        dataclasses.replace(USUAL, max_length=128).check()


def a_file(*changes: dict) -> dict:
    """Questions on one paragraph, each with something changed."""
    question = {"id": "q", "question": "what ?", "answers": [{"text": "old", "answer_start": 4}]}
    return {"data": [{"paragraphs": [{"context": "The old tree", "qas": [question | change for change in changes]}]}]}


def test_half_a_character_leaves_answers_where_they_are() -> None:
    """JSON can hold a lone surrogate, which no tokenizer takes."""
    content = a_file({"question": "what\ud83d?"})
    content["data"][0]["paragraphs"][0]["context"] = "\udc00\ud83d  old tree"
    (question,) = questions_of(content, "file.json")
    (window,) = make_windows([question], tiny_tokenizer(), RULE)["q"]
    row = labelled(window)
    first, last = (window.offsets[row[name] - window.first_token] for name in ("start_positions", "end_positions"))
    assert question.context[first[0] : last[1]] == "old"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "KeyError: 'data'"),
        ({"data": []}, "no questions"),
        ({"data": [{"paragraphs": [{"qas": [{}]}]}]}, "article 0"),
        (a_file({"answers": [{"text": 5, "answer_start": 0}]}), "TypeError: 5 is no str"),
        (a_file({"answers": [{"text": "old", "answer_start": "4"}]}), "TypeError: '4' is no int"),
        (a_file({}, {}), "has the question 'q' a second time"),
    ],
)
def test_a_file_in_another_form_is_refused(content: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        questions_of(content, "file.json")


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("train-v1.1.json", {"answers": [{"text": "old", "answer_start": 5}]}, "no question whose answer is where it"),
        ("train-v1.1.json", {"answers": [{"text": "old", "answer_start": -8}]}, "no question whose answer is where it"),
        ("train-v1.1.json", {"answers": [{"text": " ", "answer_start": 3}]}, "no question whose answer is where it"),
        ("dev-v1.1.json", {"answers": []}, "question 'q' has no answer; SQuAD v1.1's all have"),
    ],
)
def test_questions_that_cannot_be_used_are_found_before_training(
    tmp_path: Path, name: str, change: dict, expected: str
) -> None:
    for file in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / file).write_text(json.dumps(a_file(change if file == name else {})))
    with pytest.raises(UserError, match=f"{name}.*{expected}"):
        SquadData(tmp_path, tiny_tokenizer(), RULE)


def test_training_leaves_out_answers_that_are_not_where_they_should_be(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dev-v1.1.json").write_text((data / "SQuAD" / "dev-v1.1.json").read_text())
    content = json.loads((data / "SQuAD" / "train-v1.1.json").read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "train-v1.1.json").write_text(json.dumps(content))
    rule = dataclasses.replace(USUAL, max_length=64, max_query_length=8, doc_stride=40)
    rows = SquadData(tmp_path, tiny_tokenizer(), rule).train(None)
    assert len(rows) == 23
    assert "1 training questions have no answer" in capsys.readouterr().err


@pytest.mark.skipif("EARLYBERT_DATA" not in os.environ, reason="needs real data")
def test_true_spans_of_real_questions_score_full_marks() -> None:
    """Windows, labels, offsets and post-processing in a circle: scores that point at the truth give the truth."""
    folder = Path(os.environ["EARLYBERT_DATA"])
    vocabulary = (folder / "vocab" / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
    content = json.loads((folder / "squad" / "dev-v1.1.json").read_text())
    questions = questions_of(content, "dev")
    assert len(questions) == 10570
    some = questions[::20]
    rule = dataclasses.replace(USUAL, max_length=128, doc_stride=32, max_answer_length=60)
    predictions = {}
    for question, windows in make_windows(some, tokenizer, rule).items():
        starts, ends = (np.zeros((len(windows), rule.max_length), dtype=np.float32) for _ in range(2))
        for row, window in enumerate(windows):
            label = labelled(window)
            starts[row, label["start_positions"]] = ends[row, label["end_positions"]] = 9.0
        predictions[question] = candidates(windows, starts, ends, rule)[0].text
    found = score(predictions, {question.id: question.answers for question in some})
    # Offsets end with tokens; a few official answers begin or end inside one.
    assert found["exact_match"] > 98.5 and found["f1"] > 99
