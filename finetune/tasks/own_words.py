"""Words of one's own with a tag each, such as names of people and places in sentences.

Of each word the first piece alone is tagged. Words that the cut at `max_length` leaves without a piece are not scored.

Shape suffixes: N examples, S positions, C classes.
"""

import copy
import json
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.core.ranks import rank
from earlybert.core.text import in_utf8
from earlybert.finetune.config import TaskSettings
from earlybert.finetune.model import IGNORED, TrainedForTokenClassification
from earlybert.finetune.tasks.entities import entity_scores
from earlybert.finetune.tasks.own_files import (
    label_name,
    label_number,
    own_files,
    read_rows,
    sorted_labels,
    value_of,
    write_predictions,
)
from earlybert.finetune.tasks.sentences import DEFAULTS
from earlybert.finetune.tasks.task import Predict, Task, a_tenth
from earlybert.finetune.text import SPECIAL_TOKENS, Features, assemble

# The words of a row, and their tags.
Tagged = tuple[list[str], list[str]]


def tagged_rows(
    tokenizer: PreTrainedTokenizerFast, words: list[list[str]], tags: list[list[int]], max_length: int
) -> list[Features]:
    """Input rows; every first piece of a word has its tag as label, every other token is ignored."""
    room = max_length - SPECIAL_TOKENS[1]
    encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
    rows = []
    for index, (ids, own) in enumerate(zip(encoded["input_ids"], tags, strict=True)):
        word_of = encoded.word_ids(index)[:room]
        first = [place == 0 or word_of[place - 1] != word for place, word in enumerate(word_of)]
        labels = [own[word] if begins else IGNORED for word, begins in zip(word_of, first, strict=True)]
        row = assemble(tokenizer, ids[:room], None)
        row["labels"] = [IGNORED, *labels, IGNORED]
        rows.append(row)
    return rows


class OwnWordData:
    """Sentences as rows of a given tokenizer, their scores and their predictions."""

    model_class = TrainedForTokenClassification

    def __init__(self, tags: tuple[str, ...], train_rows: list[Features], dev_rows: list[Features]) -> None:
        self.tags, self.train_rows, self.dev_rows = tags, train_rows, dev_rows

    @property
    def head(self) -> dict[str, object]:
        return {"id2label": dict(enumerate(self.tags)), "label2id": {tag: n for n, tag in enumerate(self.tags)}}

    def train(self, count: int | None) -> list[Features]:
        return self.train_rows[:count]

    def held_out(self, count: int | None) -> "OwnWordData":
        """A tenth of the sentences."""
        rows, part = self.train_rows[:count], copy.copy(self)
        held = a_tenth(len(rows))
        part.train_rows, part.dev_rows = list(compress(rows, [not own for own in held])), list(compress(rows, held))
        return part

    def evaluate(self, predict: Predict, count: int | None) -> dict[str, float]:
        """Share of the words with the right tag; precision, recall and F1 of whole entities."""
        rows = self.dev_rows[:count]
        truth = [[self.tags[label] for label in _labels(row) if label != IGNORED] for row in rows]
        return entity_scores(self._predicted(predict, rows), truth)

    def submit(self, predict: Predict, folder: Path) -> None:
        """Writes the tags of every row of the validation file, those of the words that are scored."""
        write_predictions(folder, "tags", self._predicted(predict, self.dev_rows))

    def _predicted(self, predict: Predict, rows: list[Features]) -> list[list[str]]:
        unlabelled = [Features(input_ids=row["input_ids"], token_type_ids=row["token_type_ids"]) for row in rows]
        (logits_NSC,) = predict(unlabelled)
        found = []
        for logits_SC, row in zip(logits_NSC, rows, strict=True):
            scored = np.array(_labels(row)) != IGNORED
            found.append([self.tags[number] for number in logits_SC[: len(scored)][scored].argmax(-1)])
        return found


class OwnWords(Task):
    """One of some tags for every word (CoNLL-2003's form, Tjong Kim Sang and De Meulder 2003)."""

    name = "token-classification"
    main_score = "f1"
    defaults = DEFAULTS
    in_percent = False
    reads = ("train", "validation", "tokens", "tags")

    def open(self, folder: Path | None, tokenizer: PreTrainedTokenizerFast, settings: TaskSettings) -> OwnWordData:
        """Reads both files. The tags are those of the training file."""
        train, validation = own_files(self.name, settings)
        tokens, tags = settings.tokens or "tokens", settings.tags or "tags"
        read = {path: _read(path, tokens, tags) for path in (train, validation)}
        names = sorted_labels({name for _, (_, own) in read[train] for name in own}, train, tags)
        rows = []
        for path, sentences in read.items():
            numbers = [[label_number(name, names, tags, place) for name in own] for place, (_, own) in sentences]
            rows.append(tagged_rows(tokenizer, [words for _, (words, _) in sentences], numbers, settings.max_length))
            _say_what_is_cut(path, sum(map(len, numbers)), rows[-1], settings.max_length)
        return OwnWordData(names, rows[0], rows[-1])


def _read(path: Path, tokens: str, tags: str) -> list[tuple[str, Tagged]]:
    """Words and tags of every row, with its place."""
    found = []
    for place, row in read_rows(path):
        words, own = value_of(row, tokens, "tokens", place), value_of(row, tags, "tags", place)
        for column, value in ((tokens, words), (tags, own)):
            if not isinstance(value, list) or not value:
                shown = json.dumps(value)[:40]
                raise UserError(f"{place}: {column} is {shown}; it must be a list, in a file of .json or .jsonl")
        if len(words) != len(own):
            raise UserError(f"{place}: has {len(words)} {tokens} and {len(own)} {tags}; each word must have one tag")
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise UserError(f"{place}: {tokens} has {json.dumps(word)[:40]}; every word must be text")
        found.append((place, ([in_utf8(word) for word in words], [label_name(name, tags, place) for name in own])))
    return found


def _say_what_is_cut(path: Path, words: int, rows: list[Features], max_length: int) -> None:
    if cut := words - sum(label != IGNORED for row in rows for label in _labels(row)):
        where = f"have no token among the first {max_length} of their row (max_length), and are left out"
        say(f"{path}: {cut:,} of {words:,} words {where}", enabled=rank() == 0)


def _labels(row: Features) -> list[Any]:
    labels = row["labels"]
    assert isinstance(labels, list)
    return labels


OWN_WORDS = OwnWords()
