"""What a task is: how it is opened, trained on, scored and predicted for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from earlybert.core.errors import UserError
from earlybert.core.randomness import generator
from earlybert.finetune.config import TaskDefaults, TaskSettings
from earlybert.finetune.model import TaskModel
from earlybert.finetune.text import Features

# The network's scores for rows without labels: one array, or one for starts and one for ends.
Predict = Callable[[list[Features]], tuple[NDArray[np.float32], ...]]


class TaskData(Protocol):
    """A task's examples as rows of one tokenizer.

    Attributes:
        model_class: The network with the head that it needs.
        head: Fields of that network's configuration.
    """

    @property
    def model_class(self) -> TaskModel: ...

    @property
    def head(self) -> dict[str, object]: ...

    def train(self, count: int | None) -> list[Features]:
        """Rows to train on, of the first `count` examples."""

    def held_out(self, count: int | None) -> "TaskData":
        """The same task with a tenth of its first `count` training examples as its development set, trained on the
        others; always the same ones."""

    def evaluate(self, predict: Predict, count: int | None) -> dict[str, float]:
        """Scores on the first `count` examples of the development set, by name."""

    def submit(self, predict: Predict, folder: Path) -> None:
        """Writes predictions in the form that the task's server or script wants."""


def a_tenth(count: int) -> list[bool]:
    """True for a tenth of so many things, rounded half up and at least one; always the same ones. Raises UserError."""
    if count < 2:
        raise UserError(
            "learning_rate has several values, but the training set is too small to hold a tenth of it out; give one"
        )
    chosen = generator(0, "held-out tenth").permutation(count)[: max(1, math.floor(count / 10 + 0.5))]
    return np.isin(np.arange(count), chosen).tolist()


class Task(ABC):
    """A task, registered in `registry.py`.

    Attributes:
        name: What `--task`, results and the folder with its files call it.
        main_score: Which of its scores tables show.
        defaults: The numbers of fine-tuning where the user gives none.
        in_percent: Whether scores are in percent already; else they are fractions.
        reads: Settings that name its files and their columns, where they are the user's own; a task without any has
            official files in a folder of its name, or a data set on the hub.
    """

    name: str
    main_score: str
    defaults: TaskDefaults
    in_percent: bool
    reads: tuple[str, ...] = ()

    @abstractmethod
    def open(self, folder: Path | None, tokenizer: PreTrainedTokenizerFast, settings: TaskSettings) -> TaskData:
        """Reads its examples from a folder with its official files, or from the hub.

        Whatever is wrong with them is found here, before any work begins.

        Raises:
            UserError: Something cannot be read; the message names the file and the line or place.
        """
