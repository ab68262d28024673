"""GLUE's tasks: where their columns, labels and files are, and how each is scored."""

from collections.abc import Callable
from dataclasses import dataclass

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError
from earlybert.finetune.metrics import Values, accuracy, accuracy_and_f1, correlations, matthews

SQUAD = "SQuAD"


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Args:
        texts: columns of the one or two texts.
        label: column of the label.
        classes: the labels as the files spell them, in the order of their numbers; empty for a regression.
        score: the task's metrics of predictions and labels.
        main_score: the one that EarlyBERT's tables show.
        hub: name of its configuration in the hub's `nyu-mll/glue`.
        evaluations: scored splits: their name in results -> stem of the official file.
        headerless: columns of the labelled files where these have no header.
        skips_broken_rows: the official files have rows that lack columns.
    """

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    score: Callable[[Values, Values], dict[str, float]]
    main_score: str
    hub: str
    evaluations: tuple[tuple[str, str], ...] = (("", "dev"),)
    headerless: tuple[str, ...] = ()
    skips_broken_rows: bool = False

    @property
    def numbers(self) -> int:
        """Outputs of the classifier."""
        return max(1, len(self.classes))


BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = ("sentence1", "sentence2")

GLUE = {
    "CoLA": GlueTask(
        ("sentence",),
        "label",
        BINARY,
        matthews,
        "matthews",
        "cola",
        headerless=("source", "label", "mark", "sentence"),
    ),
    "MNLI": GlueTask(
        SENTENCES,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        accuracy,
        "accuracy",
        "mnli",
        evaluations=(("", "dev_matched"), ("mismatched_", "dev_mismatched")),
    ),
    "MRPC": GlueTask(("#1 String", "#2 String"), "Quality", BINARY, accuracy_and_f1, "accuracy", "mrpc"),
    "QNLI": GlueTask(("question", "sentence"), "label", ENTAILMENT, accuracy, "accuracy", "qnli"),
    "QQP": GlueTask(
        ("question1", "question2"),
        "is_duplicate",
        BINARY,
        accuracy_and_f1,
        "accuracy",
        "qqp",
        skips_broken_rows=True,
    ),
    "RTE": GlueTask(SENTENCES, "label", ENTAILMENT, accuracy, "accuracy", "rte"),
    "SST-2": GlueTask(("sentence",), "label", BINARY, accuracy, "accuracy", "sst2"),
    "STS-B": GlueTask(SENTENCES, "score", (), correlations, "pearson", "stsb"),
    "WNLI": GlueTask(SENTENCES, "label", BINARY, accuracy, "accuracy", "wnli"),
}
TASKS = (*GLUE, SQUAD)


def main_score(task: str) -> str:
    """The score that EarlyBERT's tables show for a task."""
    return "f1" if task == SQUAD else GLUE[task].main_score


def require_known(option: str, names: list[str], known: tuple[str, ...]) -> None:
    """Raises UserError, with the nearest one, for a name that is none of the known ones."""
    for name in names:
        if name not in known:
            raise UserError(f"{option} is {name!r}, which is not known{alternatives(name, known)}")
