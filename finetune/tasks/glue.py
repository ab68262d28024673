"""GLUE's nine tasks (Wang et al. 2019): where their columns, labels and files are, and how each is scored."""

from functools import partial

from earlybert.finetune.tasks.metrics import accuracy, accuracy_and_f1, correlations, matthews
from earlybert.finetune.tasks.sentences import Evaluation, SentenceTask

HUB = "nyu-mll/glue"
BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = ("sentence1", "sentence2")

_ACCURACY = partial(SentenceTask, score=accuracy, main_score="accuracy")
_ACCURACY_AND_F1 = partial(SentenceTask, score=accuracy_and_f1, main_score="accuracy", classes=BINARY)

_TASKS = (
    SentenceTask(
        name="CoLA",
        texts=("sentence",),
        label="label",
        classes=BINARY,
        score=matthews,
        main_score="matthews",
        hub=(HUB, "cola"),
        headerless=("source", "label", "mark", "sentence"),
    ),
    _ACCURACY(
        name="MNLI",
        texts=SENTENCES,
        label="gold_label",
        classes=("entailment", "neutral", "contradiction"),
        hub=(HUB, "mnli"),
        evaluations=(
            Evaluation("dev_matched", "test_matched", submission="MNLI-m.tsv"),
            Evaluation("dev_mismatched", "test_mismatched", submission="MNLI-mm.tsv", prefix="mismatched_"),
        ),
    ),
    _ACCURACY_AND_F1(
        name="MRPC", texts=("#1 String", "#2 String"), label="Quality", hub=(HUB, "mrpc"), hub_texts=SENTENCES
    ),
    _ACCURACY(name="QNLI", texts=("question", "sentence"), label="label", classes=ENTAILMENT, hub=(HUB, "qnli")),
    _ACCURACY_AND_F1(
        name="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        hub=(HUB, "qqp"),
        skips_broken_rows=True,
    ),
    _ACCURACY(name="RTE", texts=SENTENCES, label="label", classes=ENTAILMENT, hub=(HUB, "rte")),
    _ACCURACY(name="SST-2", texts=("sentence",), label="label", classes=BINARY, hub=(HUB, "sst2")),
    SentenceTask(
        name="STS-B",
        texts=SENTENCES,
        label="score",
        scale=(0.0, 5.0),
        score=correlations,
        main_score="pearson",
        hub=(HUB, "stsb"),
    ),
    _ACCURACY(name="WNLI", texts=SENTENCES, label="label", classes=BINARY, hub=(HUB, "wnli")),
)
GLUE: dict[str, SentenceTask] = {task.name: task for task in _TASKS}
