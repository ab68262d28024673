"""Texts, or pairs of texts, of one's own with a label each."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from earlybert.finetune.config import TaskSettings
from earlybert.finetune.tasks.metrics import accuracy
from earlybert.finetune.tasks.own_files import (
    label_name,
    label_number,
    own_files,
    read_rows,
    sorted_labels,
    text_of,
    value_of,
    write_predictions,
)
from earlybert.finetune.tasks.sentences import DEFAULTS, Rows, SentenceData, SentenceTask
from earlybert.finetune.tasks.task import Predict, Task


class OwnTextData(SentenceData):
    """Like GLUE's, but read from two files already."""

    def __init__(
        self, task: SentenceTask, splits: dict[str, Rows], tokenizer: PreTrainedTokenizerFast, max_length: int
    ) -> None:
        self._splits = splits
        super().__init__(task, None, tokenizer, max_length)

    def _read(self, split: str, *, labelled: bool) -> Rows:
        return self._splits[split]

    def submit(self, predict: Predict, folder: Path) -> None:
        """Writes the label of every row of the validation file."""
        predicted = self._predicted(predict(self.rows(Rows(self._splits["dev"].texts, None)))[0])
        write_predictions(folder, "label", [self.task.classes[int(number)] for number in predicted])


class OwnTexts(Task):
    """One of some classes for one or two texts."""

    name = "text-classification"
    main_score = "accuracy"
    defaults = DEFAULTS
    in_percent = False
    reads = ("train", "validation", "text", "text_pair", "label")

    def open(self, folder: Path | None, tokenizer: PreTrainedTokenizerFast, settings: TaskSettings) -> OwnTextData:
        """Reads both files. The labels are those of the training file."""
        train, validation = own_files(self.name, settings)
        columns = {"text": settings.text or "text"}
        if settings.text_pair:
            columns["text_pair"] = settings.text_pair
        label = settings.label or "label"
        read = {path: _read(path, columns, label) for path in (train, validation)}
        classes = sorted_labels({name for _, _, name in read[train]}, train, label)
        rows = {
            split: Rows(
                [list(column) for column in zip(*(texts for _, texts, _ in read[path]), strict=True)],
                [label_number(name, classes, label, place) for place, _, name in read[path]],
            )
            for split, path in (("train", train), ("dev", validation))
        }
        task = SentenceTask(
            name=self.name,
            texts=tuple(columns.values()),
            label=label,
            classes=classes,
            score=accuracy,
            main_score=self.main_score,
        )
        return OwnTextData(task, rows, tokenizer, settings.max_length)


def _read(path: Path, columns: dict[str, str], label: str) -> list[tuple[str, list[str], str]]:
    """Place, texts and label of every row; `columns` are those of the texts, by their options."""
    return [
        (
            place,
            [text_of(row, column, option, place) for option, column in columns.items()],
            label_name(value_of(row, label, "label", place), label, place),
        )
        for place, row in read_rows(path)
    ]


OWN_TEXTS = OwnTexts()
