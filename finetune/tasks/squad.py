"""SQuAD v1.1: reading the official JSON, sliding windows over long contexts, and answers out of window scores.

Shape suffixes: N windows, S positions.
"""

import copy
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from earlybert.core.errors import UserError, one_line
from earlybert.core.files import read_json, write_json
from earlybert.core.progress import say
from earlybert.core.ranks import rank
from earlybert.core.text import in_utf8
from earlybert.finetune.config import TaskDefaults, TaskSettings
from earlybert.finetune.model import TrainedForQuestionAnswering
from earlybert.finetune.tasks.squad_scoring import score
from earlybert.finetune.tasks.task import Predict, Task, a_tenth
from earlybert.finetune.text import SPECIAL_TOKENS, Features, assemble, token_ids

HUB = "rajpurkar/squad"
TRAIN, DEV = "train-v1.1.json", "dev-v1.1.json"
# Where a window does not hold the answer, it is to point at [CLS].
NO_ANSWER = 0


@dataclass(frozen=True)
class Question:
    """One question; `starts` are the answers' first characters in the context."""

    id: str
    text: str
    context: str
    answers: list[str]
    starts: list[int]


@dataclass(frozen=True)
class Window:
    """What a piece of a context looks like to the network.

    `offsets` are the characters [first, after last] of the context that each context token stands for; `first_token` is
    the row position of the first of them. `best` says for each whether no other window of the question gives it more
    context. `reach` are the characters from the end of the last token before the window to the start of the next after
    it: what lies within touches no token that the window lacks.
    """

    question: Question
    features: Features
    first_token: int
    offsets: list[tuple[int, int]]
    best: list[bool]
    reach: tuple[int, int]


@dataclass(frozen=True)
class WindowRule:
    """How contexts are cut and answers put together.

    Args:
        max_length: tokens in a row.
        doc_stride: tokens from one window's start to the next one's.
        max_query_length: tokens of the question that are kept.
        n_best: start and end positions that are combined, and answers that are kept.
        max_answer_length: most tokens in an answer.
    """

    max_length: int
    doc_stride: int
    max_query_length: int
    n_best: int
    max_answer_length: int

    def check(self) -> None:
        room = self.max_length - self.max_query_length - SPECIAL_TOKENS[2]
        if room < self.doc_stride:
            raise UserError(
                f"doc_stride is {self.doc_stride}, but with max_length {self.max_length} and max_query_length "
                f"{self.max_query_length} a window may hold only {room} tokens of context, so some would be left out"
            )


def questions_of(content: Any, name: str) -> list[Question]:
    """Questions of an official JSON; raises UserError naming the place."""
    questions: dict[str, Question] = {}
    where = name
    try:
        for article, entry in enumerate(content["data"]):
            for number, paragraph in enumerate(entry["paragraphs"]):
                where = f"{name}: paragraph {number} of article {article}"
                for item in paragraph["qas"]:
                    question = _question(item, paragraph["context"])
                    if question.id in questions:
                        raise UserError(f"{where}: has the question {question.id!r} a second time")
                    questions[question.id] = question
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: is not in SQuAD v1.1's form ({type(error).__name__}: {error})") from None
    if not questions:
        raise UserError(f"{name}: holds no questions")
    return list(questions.values())


def _question(item: Any, context: Any) -> Question:
    """One entry of a paragraph; raises KeyError or TypeError."""
    answers = [(answer["text"], answer["answer_start"]) for answer in item["answers"]]
    texts, starts = [text for text, _ in answers], [start for _, start in answers]
    typed = [(text, str) for text in (context, item["question"], *texts)] + [(start, int) for start in starts]
    for value, expected in typed:
        if not isinstance(value, expected):
            raise TypeError(f"{value!r} is no {expected.__name__}")
    # As many characters as before, so answers stay where they are.
    text, context, *texts = map(in_utf8, (item["question"].strip(), context, *texts))
    return Question(str(item["id"]), text, context, texts, starts)


def _from_file(path: Path) -> list[Question]:
    return questions_of(read_json(path), str(path))


def read_hub(split: str) -> list[Question]:
    """The same from the `datasets` library."""
    import datasets

    try:
        data = datasets.load_dataset(HUB, split=split)
    except Exception as error:
        raise UserError(f"{HUB}: cannot be loaded ({one_line(error)}); or name official files with --data") from None
    return [
        Question(
            row["id"], row["question"].strip(), row["context"], row["answers"]["text"], row["answers"]["answer_start"]
        )
        for row in data
    ]


def _with_marks(context: str, span: tuple[int, int]) -> tuple[int, int]:
    """A token's characters and the combining marks after them: uncased tokenizers drop these, an answer keeps them."""
    first, after = span
    while after < len(context) and unicodedata.category(context[after]) == "Mn":
        after += 1
    return first, after


def most_context(window: int, token: int, spans: list[tuple[int, int]]) -> bool:
    """Whether no other span gives the token more context: the smaller of the tokens left and right of it in the span,
    plus a hundredth of the span's length; of equal ones the first."""

    def context(span: tuple[int, int]) -> float:
        first, end = span
        return min(token - first, end - 1 - token) + 0.01 * (end - first)

    holding = [index for index, (first, end) in enumerate(spans) if first <= token < end]
    return max(holding, key=lambda index: context(spans[index])) == window


def make_windows(
    questions: list[Question], tokenizer: PreTrainedTokenizerFast, rule: WindowRule
) -> dict[str, list[Window]]:
    """Windows of every question, by its id."""
    contexts = list(dict.fromkeys(question.context for question in questions))
    encoded = tokenizer(contexts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens_of = {
        context: (ids, [_with_marks(context, span) for span in spans])
        for context, ids, spans in zip(contexts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    }
    queries = token_ids(tokenizer, [question.text for question in questions])
    windows = {}
    for question, query in zip(questions, queries, strict=True):
        ids, offsets = tokens_of[question.context]
        query = query[: rule.max_query_length]
        room = rule.max_length - len(query) - SPECIAL_TOKENS[2]
        spans = [(0, min(room, len(ids)))]
        while spans[-1][1] < len(ids):
            first = spans[-1][0] + rule.doc_stride
            spans.append((first, min(first + room, len(ids))))
        windows[question.id] = [
            Window(
                question=question,
                features=assemble(tokenizer, query, ids[first:end]),
                first_token=len(query) + 2,
                offsets=offsets[first:end],
                best=[most_context(index, token, spans) for token in range(first, end)],
                reach=(
                    offsets[first - 1][1] if first else 0,
                    offsets[end][0] if end < len(offsets) else len(question.context),
                ),
            )
            for index, (first, end) in enumerate(spans)
        ]
    return windows


def labelled(window: Window) -> Features:
    """A row to train on: the first answer's first and last token, or [CLS] twice where it is not wholly inside.

    What the tokenizer drops (white space, zero-width characters) may stand at the answer's edges.
    """
    start = window.question.starts[0]
    end = start + len(window.question.answers[0])
    inside = [index for index, (first, after) in enumerate(window.offsets) if first < end and after > start]
    whole = inside and window.reach[0] <= start and end <= window.reach[1]
    first, last = (window.first_token + inside[0], window.first_token + inside[-1]) if whole else (NO_ANSWER,) * 2
    return Features(**window.features, start_positions=first, end_positions=last)


@dataclass(frozen=True)
class Answer:
    """A candidate: its text, the sum of its two scores, and the share of all candidates' exp(score) that is its own."""

    text: str
    score: float
    probability: float


def candidates(
    windows: list[Window], starts_NS: NDArray[np.float32], ends_NS: NDArray[np.float32], rule: WindowRule
) -> list[Answer]:
    """The n best answers to one question, different texts, best first; scores by window and position."""
    scores: dict[str, float] = {}
    for window, start_S, end_S in zip(windows, starts_NS, ends_NS, strict=True):
        tokens = slice(window.first_token, window.first_token + len(window.offsets))
        start_T, end_T = start_S[tokens], end_S[tokens]
        ends = np.argsort(-end_T, kind="stable")[: rule.n_best]
        for first in np.argsort(-start_T, kind="stable")[: rule.n_best]:
            if not window.best[first]:
                continue
            for last in ends[(ends >= first) & (ends < first + rule.max_answer_length)]:
                text = window.question.context[window.offsets[first][0] : window.offsets[last][1]]
                scores[text] = max(scores.get(text, -np.inf), float(start_T[first] + end_T[last]))
    ordered = sorted(scores.items(), key=lambda item: -item[1])[: rule.n_best]
    if not ordered:
        return [Answer("", 0.0, 1.0)]
    weight = np.exp(np.array([value for _, value in ordered]) - ordered[0][1])
    return [
        Answer(text, value, float(share)) for (text, value), share in zip(ordered, weight / weight.sum(), strict=True)
    ]


def _answer_is_in_place(question: Question) -> bool:
    """Whether there is something to see of the first answer where it is said to be."""
    for answer, start in zip(question.answers[:1], question.starts, strict=False):
        seen = any(unicodedata.category(character)[0] not in "CZ" for character in answer)
        return seen and start >= 0 and question.context.startswith(answer, start)
    return False


class SquadData:
    """SQuAD's questions as rows of a given tokenizer, its scores and its predictions."""

    model_class = TrainedForQuestionAnswering

    def __init__(self, folder: Path | None, tokenizer: PreTrainedTokenizerFast, rule: WindowRule) -> None:
        rule.check()
        self.tokenizer, self.rule = tokenizer, rule
        train, self.dev_questions = (
            (_from_file(folder / TRAIN), _from_file(folder / DEV))
            if folder
            else (read_hub("train"), read_hub("validation"))
        )
        self.train_questions = [question for question in train if _answer_is_in_place(question)]
        if left_out := len(train) - len(self.train_questions):
            where = "have no answer at the place that is stated, and were left out"
            say(f"{left_out} training questions {where}", enabled=rank() == 0)
        if not self.train_questions:
            raise UserError(f"{folder / TRAIN if folder else HUB}: holds no question whose answer is where it says")
        for question in self.dev_questions:
            if not question.answers:
                raise UserError(
                    f"{folder / DEV if folder else HUB}: question {question.id!r} has no answer; SQuAD v1.1's all have"
                )

    @property
    def head(self) -> dict[str, object]:
        return {}

    def train(self, count: int | None) -> list[Features]:
        """Rows of the first `count` questions whose answer stands where the file says."""
        windows = make_windows(self.train_questions[:count], self.tokenizer, self.rule)
        return [labelled(window) for of_question in windows.values() for window in of_question]

    def held_out(self, count: int | None) -> "SquadData":
        """The questions of a tenth of the contexts."""
        questions, part = self.train_questions[:count], copy.copy(self)
        contexts = list(dict.fromkeys(question.context for question in questions))
        held = dict(zip(contexts, a_tenth(len(contexts)), strict=True))
        part.train_questions = [question for question in questions if not held[question.context]]
        part.dev_questions = [question for question in questions if held[question.context]]
        return part

    def answers(self, predict: Predict, questions: list[Question]) -> dict[str, list[Answer]]:
        """The n best answers by question id."""
        windows = make_windows(questions, self.tokenizer, self.rule)
        start_NS, end_NS = predict([window.features for of_question in windows.values() for window in of_question])
        result, at = {}, 0
        for question, of_question in windows.items():
            rows = slice(at, at + len(of_question))
            result[question] = candidates(of_question, start_NS[rows], end_NS[rows], self.rule)
            at += len(of_question)
        return result

    def evaluate(self, predict: Predict, count: int | None) -> dict[str, float]:
        """Exact match and F1 on the development set, in percent."""
        questions = self.dev_questions[:count]
        best = {question: answers[0].text for question, answers in self.answers(predict, questions).items()}
        return score(best, {question.id: question.answers for question in questions})

    def submit(self, predict: Predict, folder: Path) -> None:
        """Writes the development set's answers in the official form, and the n best of each."""
        answers = self.answers(predict, self.dev_questions)
        write_json(folder / "predictions.json", {question: best[0].text for question, best in answers.items()})
        nbest = {question: [vars(answer) for answer in best] for question, best in answers.items()}
        write_json(folder / "nbest_predictions.json", nbest)


class Squad(Task):
    """Questions on paragraphs of Wikipedia, answered by a span of the paragraph (Rajpurkar et al. 2016)."""

    name = "SQuAD"
    main_score = "f1"
    in_percent = True
    # What the paper gives it (EarlyBERT sections 3.3, 4.1 and 4.2); the batch is the released launcher's.
    defaults = TaskDefaults(
        epochs=2.0,
        learning_rate=3e-5,
        ticket_epochs=2.0,
        ticket_learning_rate=3e-5,
        batch_size=48,
        max_length=384,
    )

    def open(self, folder: Path | None, tokenizer: PreTrainedTokenizerFast, settings: TaskSettings) -> SquadData:
        """Reads the questions for training and development."""
        rule = WindowRule(
            settings.max_length,
            settings.doc_stride,
            settings.max_query_length,
            settings.n_best,
            settings.max_answer_length,
        )
        return SquadData(folder, tokenizer, rule)


SQUAD = Squad()
