"""Tasks on one or two texts: official TSV files or the hub's data set, scores, and predictions for submission.

Shape suffixes: N examples, C classes.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from earlybert.core.errors import UserError, one_line
from earlybert.core.files import reading, write_text
from earlybert.core.progress import say
from earlybert.core.ranks import rank
from earlybert.finetune.config import TaskDefaults, TaskSettings
from earlybert.finetune.model import TrainedForSequenceClassification
from earlybert.finetune.tasks.metrics import Values
from earlybert.finetune.tasks.task import Predict, Task, a_tenth
from earlybert.finetune.text import SPECIAL_TOKENS, Features, assemble, token_ids, truncate

# What the paper gives GLUE (EarlyBERT sections 3.3, 4.1 and 4.2).
DEFAULTS = TaskDefaults(
    epochs=3.0,
    learning_rate=2e-5,
    ticket_epochs=2.0,
    ticket_learning_rate=4e-5,
    batch_size=32,
    max_length=128,
)


@dataclass(frozen=True)
class Evaluation:
    """A development set, and the test set beside it.

    Args:
        dev: stem of its official file; on the hub `validation` stands for `dev` in it.
        test: that of the test set.
        submission: name of the file with the test predictions; by default the task's.
        prefix: what names of its scores begin with; one with a prefix may be missing.
    """

    dev: str = "dev"
    test: str = "test"
    submission: str | None = None
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class SentenceTask(Task):
    """One or two texts have a label: one of some classes, or a number (a regression).

    Args:
        name: the task, and the folder with its files.
        texts: columns of the one or two texts.
        label: column of the label.
        classes: the labels as the files spell them, in the order of their numbers on the hub; empty for a regression.
        scale: least and greatest label of a regression.
        score: the task's metrics of predictions and labels.
        main_score: the one that tables show.
        hub: data set of the hub, and its configuration, where it has one.
        hub_texts: the hub's columns of the texts, where they are not those of the files.
        evaluations: what is scored and predicted.
        headerless: columns of the labelled files where these have no header.
        skips_broken_rows: the official files have rows that lack columns.
        defaults: the numbers of fine-tuning where the user gives none.
    """

    name: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)
    score: Callable[[Values, Values], dict[str, float]]
    main_score: str
    hub: tuple[str, str] = ("", "")
    hub_texts: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    headerless: tuple[str, ...] = ()
    skips_broken_rows: bool = False
    defaults: TaskDefaults = DEFAULTS
    in_percent = False

    def open(self, folder: Path | None, tokenizer: PreTrainedTokenizerFast, settings: TaskSettings) -> "SentenceData":
        """Reads all files; those of the test sets, too, where predictions are wanted."""
        return SentenceData(self, folder, tokenizer, settings.max_length, with_test=settings.predict)


@dataclass(frozen=True)
class Rows:
    """One split as columns of text, and its labels as numbers (none for a test set)."""

    texts: list[list[str]]
    labels: list[int] | list[float] | None

    def first(self, count: int | None) -> "Rows":
        return Rows([column[:count] for column in self.texts], self.labels and self.labels[:count])

    def where(self, chosen: list[bool]) -> "Rows":
        labels: Any = self.labels and list(compress(self.labels, chosen))
        return Rows([list(compress(column, chosen)) for column in self.texts], labels)


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line; quotes are plain characters, a byte-order mark is none."""
    with reading(path, "a TSV file"), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n").split("\t")


def _label(text: str, task: SentenceTask, where: str) -> int | float:
    if task.classes:
        if text not in task.classes:
            raise UserError(f"{where}: {task.label} is {text!r}; it must be one of {', '.join(task.classes)}")
        return task.classes.index(text)
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    least, greatest = task.scale
    if not least <= score <= greatest:
        raise UserError(f"{where}: {task.label} is {text!r}; it must be a number from {least:g} to {greatest:g}")
    return score


def read_tsv(path: Path, task: SentenceTask, *, labelled: bool) -> Rows:
    """Reads one official file; raises UserError naming file and line."""
    lines = _fields(path)
    wanted = [*task.texts, *([task.label] if labelled else [])]
    if labelled and task.headerless:
        header = list(task.headerless)
    else:
        _, header = next(lines, (1, []))
        if not header:
            raise UserError(f"{path}: is empty, expected a line of column names and then examples")
        for column in wanted:
            if column not in header:
                raise UserError(f"{path}:1: has no column {column!r}; its columns are {', '.join(header)}")
    indices = [header.index(column) for column in wanted]
    columns: list[list[str]] = [[] for _ in task.texts]
    labels: list = []
    broken = 0
    for number, fields in lines:
        if len(fields) <= max(indices):
            # In a test set it would shift all predictions after it.
            if not (labelled and task.skips_broken_rows):
                raise UserError(f"{path}:{number}: has {len(fields)} columns; it must have {len(header)}")
            broken += 1
            continue
        for texts, index in zip(columns, indices, strict=False):
            texts.append(fields[index])
        if labelled:
            labels.append(_label(fields[indices[-1]], task, f"{path}:{number}"))
    if broken:
        say(f"{path}: {broken} rows that lack columns were left out", enabled=rank() == 0)
    if not columns[0]:
        raise UserError(f"{path}: holds no examples")
    return Rows(columns, labels if labelled else None)


def read_hub(split: str, task: SentenceTask, *, labelled: bool) -> Rows:
    """The same from the `datasets` library; labels there are numbers already, in the same order."""
    import datasets

    name, config = task.hub
    try:
        data = datasets.load_dataset(name, config, split=split.replace("dev", "validation"))
    except Exception as error:
        raise UserError(
            f"{name} {config}: cannot be loaded ({one_line(error)}); or name official files with --data"
        ) from None
    texts = [list(data[column]) for column in task.hub_texts or task.texts]
    return Rows(texts, list(data["label"]) if labelled else None)


class SentenceData:
    """One task's examples as rows of a given tokenizer, its scores, and its predictions for submission.

    The test set is read only `with_test`, too: like the others before any work begins, so that it is known to be whole.
    """

    model_class = TrainedForSequenceClassification

    def __init__(
        self,
        task: SentenceTask,
        folder: Path | None,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        *,
        with_test: bool = False,
    ) -> None:
        self.task, self.folder, self.tokenizer, self.max_length = task, folder, tokenizer, max_length
        self.train_rows = self._read("train", labelled=True)
        # By the prefix of the scores' names, and by the name of the file to submit.
        self.evaluated = {
            evaluation.prefix: self._read(evaluation.dev, labelled=True)
            for evaluation in task.evaluations
            if not evaluation.prefix or self._has(evaluation.dev)
        }
        self.tested = {
            evaluation.submission or f"{task.name}.tsv": self._read(evaluation.test, labelled=False)
            for evaluation in task.evaluations
            if with_test and self._has(evaluation.test)
        }

    @property
    def head(self) -> dict[str, object]:
        """Fields of the model's configuration."""
        names = dict(enumerate(self.task.classes)) or {0: self.task.label}
        return {
            "id2label": names,
            "label2id": {label: number for number, label in names.items()},
            # Without it Hugging Face's pipeline takes one output for a class, and gives its sigmoid.
            "problem_type": "single_label_classification" if self.task.classes else "regression",
        }

    def _has(self, split: str) -> bool:
        there = self.folder is None or (self.folder / f"{split}.tsv").is_file()
        if not there:
            say(f"{self.folder}: has no {split}.tsv, which is left out", enabled=rank() == 0)
        return there

    def _read(self, split: str, *, labelled: bool) -> Rows:
        if self.folder is None:
            return read_hub(split, self.task, labelled=labelled)
        return read_tsv(self.folder / f"{split}.tsv", self.task, labelled=labelled)

    def rows(self, rows: Rows) -> list[Features]:
        """Input rows with labels where there are any."""
        ids = [token_ids(self.tokenizer, column) for column in rows.texts]
        room = self.max_length - SPECIAL_TOKENS[len(ids)]
        if len(ids) == 1:
            made = [assemble(self.tokenizer, first[:room], None) for first in ids[0]]
        else:
            made = [
                assemble(self.tokenizer, *truncate(first, second, room)) for first, second in zip(*ids, strict=True)
            ]
        for features, label in zip(made, rows.labels or (), strict=False):
            features["labels"] = label
        return made

    def train(self, count: int | None) -> list[Features]:
        return self.rows(self.train_rows.first(count))

    def held_out(self, count: int | None) -> "SentenceData":
        """A tenth of the examples."""
        rows, part = self.train_rows.first(count), copy.copy(self)
        held = a_tenth(len(rows.texts[0]))
        part.train_rows, part.evaluated = rows.where([not own for own in held]), {"": rows.where(held)}
        return part

    def _predicted(self, logits_NC: NDArray[np.float32]) -> Values:
        return logits_NC.argmax(1) if self.task.classes else logits_NC[:, 0].astype(np.float64)

    def evaluate(self, predict: Predict, count: int | None) -> dict[str, float]:
        """Scores on the development set, and the accuracy of always guessing its most frequent class.

        For MNLI those on the mismatched set, too, where the folder has it.
        """
        scores: dict[str, float] = {}
        for prefix, every in self.evaluated.items():
            rows = every.first(count)
            assert rows.labels is not None
            label_N = np.array(rows.labels)
            own = self.task.score(self._predicted(predict(self.rows(Rows(rows.texts, None)))[0]), label_N)
            if self.task.classes:
                own["majority"] = float(np.bincount(label_N).max() / len(label_N))
            scores |= {prefix + key: value for key, value in own.items()}
        return scores

    def submit(self, predict: Predict, folder: Path) -> None:
        """Writes the test predictions as GLUE's server wants them."""
        least, greatest = self.task.scale
        for name, rows in self.tested.items():
            predicted = self._predicted(predict(self.rows(rows))[0])
            if self.task.classes:
                answers = [self.task.classes[int(number)] for number in predicted]
            else:
                answers = [f"{min(greatest, max(least, float(score))):.3f}" for score in predicted]
            lines = [f"{index}\t{answer}\n" for index, answer in enumerate(answers)]
            write_text(folder / name, "index\tprediction\n" + "".join(lines))
