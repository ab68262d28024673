"""GLUE: reading the official TSV folders or the hub's data set, scoring, and predictions for submission.

Shape suffixes: N examples, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from earlybert.core.distributed import rank
from earlybert.core.errors import UserError
from earlybert.core.files import write_text
from earlybert.core.progress import say
from earlybert.finetune.metrics import Values
from earlybert.finetune.model import EarlyBertForSequenceClassification
from earlybert.finetune.tasks import GLUE, GlueTask
from earlybert.finetune.text import SPECIAL_TOKENS, Features, assemble, token_ids, truncate

HUB = "nyu-mll/glue"
# The hub's splits and the columns that it names otherwise than the files.
HUB_SPLITS = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
HUB_COLUMNS = {"#1 String": "sentence1", "#2 String": "sentence2"}
# In a submission the two halves of MNLI are files of their own.
SUBMISSIONS = {("MNLI", "test_matched"): "MNLI-m.tsv", ("MNLI", "test_mismatched"): "MNLI-mm.tsv"}

Predict = Callable[[list[Features]], tuple[NDArray[np.float32], ...]]


@dataclass(frozen=True)
class Rows:
    """One split as columns of text, and its labels as numbers (none for a test set)."""

    texts: list[list[str]]
    labels: list[int] | list[float] | None

    def first(self, count: int | None) -> "Rows":
        return Rows([column[:count] for column in self.texts], self.labels and self.labels[:count])


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line; quotes are plain characters, a byte-order mark is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\r\n").split("\t")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text, expected a TSV file of GLUE") from None


def _label(text: str, task: GlueTask, place: str) -> int | float:
    if task.classes:
        if text not in task.classes:
            raise UserError(f"{place}: {task.label} is {text!r}; it must be one of {', '.join(task.classes)}")
        return task.classes.index(text)
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 5:
        raise UserError(f"{place}: {task.label} is {text!r}; it must be a number from 0 to 5")
    return score


def read_tsv(path: Path, task: GlueTask, *, labelled: bool) -> Rows:
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
    places = [header.index(column) for column in wanted]
    columns: list[list[str]] = [[] for _ in task.texts]
    labels: list = []
    broken = 0
    for number, fields in lines:
        if len(fields) <= max(places):
            # In a test set it would shift all predictions after it.
            if not (labelled and task.skips_broken_rows):
                raise UserError(f"{path}:{number}: has {len(fields)} columns; it must have {len(header)}")
            broken += 1
            continue
        for texts, place in zip(columns, places, strict=False):
            texts.append(fields[place])
        if labelled:
            labels.append(_label(fields[places[-1]], task, f"{path}:{number}"))
    if broken:
        say(f"{path}: {broken} rows that lack columns were left out", enabled=rank() == 0)
    if not columns[0]:
        raise UserError(f"{path}: holds no examples")
    return Rows(columns, labels if labelled else None)


def read_hub(split: str, task: GlueTask, *, labelled: bool) -> Rows:
    """The same from the `datasets` library; labels there are numbers already, in the same order."""
    import datasets

    try:
        data = datasets.load_dataset(HUB, task.hub, split=HUB_SPLITS.get(split, split))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{HUB} {task.hub}: cannot be loaded ({reason}); or name official files with --data") from None
    texts = [list(data[HUB_COLUMNS.get(column, column)]) for column in task.texts]
    return Rows(texts, list(data["label"]) if labelled else None)


class GlueData:
    """One task's examples as rows of a given tokenizer, its scores, and its predictions for submission.

    The test set is read only `with_test`, too: like the others before any work begins, so that it is known to be whole.
    """

    model_class = EarlyBertForSequenceClassification

    def __init__(
        self,
        name: str,
        folder: Path | None,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        *,
        with_test: bool = False,
    ) -> None:
        self.name, self.task = name, GLUE[name]
        self.folder, self.tokenizer, self.max_length = folder, tokenizer, max_length
        self.train_rows = self._read("train")
        self.evaluated = {
            prefix: self._read(split) for prefix, split in self.task.evaluations if not prefix or self._has(split)
        }
        tests = [split.replace("dev", "test") for _, split in self.task.evaluations] if with_test else []
        self.tested = {split: self._read(split) for split in tests if self._has(split)}

    @property
    def head(self) -> dict[str, object]:
        """Fields of the model's configuration."""
        names = dict(enumerate(self.task.classes)) or {0: self.task.label}
        return {"id2label": names, "label2id": {label: number for number, label in names.items()}}

    def _has(self, split: str) -> bool:
        there = self.folder is None or (self.folder / f"{split}.tsv").is_file()
        if not there:
            say(f"{self.folder}: has no {split}.tsv, which is left out", enabled=rank() == 0)
        return there

    def _read(self, split: str) -> Rows:
        labelled = not split.startswith("test")
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

    def _predicted(self, logits_NC: NDArray[np.float32]) -> Values:
        return logits_NC.argmax(1) if self.task.classes else logits_NC[:, 0].astype(np.float64)

    def evaluate(self, predict: Predict, count: int | None) -> dict[str, float]:
        """Scores on the development set, and the accuracy of always guessing its most frequent class.

        For MNLI those on the mismatched set beside them, where the folder has it.
        """
        scores: dict[str, float] = {}
        for prefix, every in self.evaluated.items():
            rows = every.first(count)
            assert rows.labels is not None
            label_N = np.array(rows.labels)
            found = self.task.score(self._predicted(predict(self.rows(Rows(rows.texts, None)))[0]), label_N)
            if self.task.classes:
                found["majority"] = float(np.bincount(label_N).max() / len(label_N))
            scores |= {prefix + key: value for key, value in found.items()}
        return scores

    def submit(self, predict: Predict, folder: Path) -> None:
        """Writes the test predictions as GLUE's server wants them."""
        for split, rows in self.tested.items():
            predicted = self._predicted(predict(self.rows(rows))[0])
            if self.task.classes:
                answers = [self.task.classes[int(number)] for number in predicted]
            else:
                answers = [f"{min(5.0, max(0.0, float(score))):.3f}" for score in predicted]
            lines = [f"{index}\t{answer}\n" for index, answer in enumerate(answers)]
            name = SUBMISSIONS.get((self.name, split), f"{self.name}.tsv")
            write_text(folder / name, "index\tprediction\n" + "".join(lines))
