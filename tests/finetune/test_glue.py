"""GLUE's files: every task's layout, made up and real, and predictions for submission."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.finetune.tasks.glue import GLUE
from earlybert.finetune.tasks.sentences import SentenceData, read_tsv
from earlybert.finetune.text import Features, truncate
from tests.finetune.made_up import VOCABULARY, table, tiny_tokenizer

REAL = os.environ.get("EARLYBERT_DATA")


def opened(folder: Path, task: str, max_length: int = 48) -> SentenceData:
    return SentenceData(GLUE[task], folder / task, tiny_tokenizer(), max_length, with_test=True)


@pytest.mark.parametrize("task", GLUE)
def test_every_task_is_read_from_its_official_layout(all_glue: Path, task: str) -> None:
    rows = opened(all_glue, task).train(None)
    lines = (all_glue / task / "train.tsv").read_text(encoding="utf-8-sig").splitlines()
    lines = lines if task == "CoLA" else lines[1:]
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        fields = line.split("\t")
        # In these files only texts have several words, and only MRPC and CoLA do not end with the label.
        texts = [field for field in fields if field.count(" ") >= 3]
        label = {"MRPC": fields[0], "CoLA": fields[1]}.get(task, fields[-1])
        words = [VOCABULARY[number] for number in row["input_ids"]]
        assert words == ["[CLS]", *" [SEP] ".join(texts).split(), "[SEP]"]
        assert row["labels"] == (float(label) if task == "STS-B" else GLUE[task].classes.index(label))
        assert row["token_type_ids"].count(1) == (len(texts[1].split()) + 1 if len(texts) == 2 else 0)


def always(data: SentenceData, answers: np.ndarray):  # type: ignore[no-untyped-def]
    """A network that gives these answers, whatever it is asked."""

    def predict(rows: list[Features]) -> tuple[np.ndarray]:
        assert all("labels" not in row for row in rows)
        numbers = answers[: len(rows)]
        return (numbers[:, None] if not data.task.classes else np.eye(len(data.task.classes))[numbers.astype(int)],)

    return predict


def test_both_halves_of_mnli_are_scored_apart(all_glue: Path) -> None:
    data = opened(all_glue, "MNLI")
    calls = iter([np.zeros(9), np.arange(9) % 3])
    found = data.evaluate(lambda rows: always(data, next(calls))(rows), None)
    assert (found["accuracy"], found["mismatched_accuracy"]) == (pytest.approx(1 / 3), 1.0)
    assert found["majority"] == pytest.approx(1 / 3)


def test_sts_b_is_scored_as_a_regression(all_glue: Path) -> None:
    data = opened(all_glue, "STS-B")
    found = data.evaluate(always(data, np.array([0.1, 0.9, 0.8, 3.0, 2.0, 4.0])), None)
    truth = np.arange(6) * 0.75
    assert found["pearson"] == pytest.approx(np.corrcoef(truth, [0.1, 0.9, 0.8, 3.0, 2.0, 4.0])[0, 1])
    assert found["spearman"] == pytest.approx(1 - 6 * (1 + 1 + 1 + 1) / (6 * 35))
    assert "majority" not in found


def test_submissions_have_glues_form(all_glue: Path, tmp_path: Path) -> None:
    data = opened(all_glue, "MNLI")
    data.submit(always(data, np.arange(9) % 3), tmp_path)
    expected = ["index\tprediction", "0\tentailment", "1\tneutral", "2\tcontradiction"]
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        assert (tmp_path / name).read_text().splitlines()[:4] == expected
    data = opened(all_glue, "STS-B")
    data.submit(always(data, np.array([-1.0, 0.12345, 9.0, 1, 2, 3])), tmp_path)
    assert (tmp_path / "STS-B.tsv").read_text().splitlines()[1:4] == ["0\t0.000", "1\t0.123", "2\t5.000"]
    data = opened(all_glue, "SST-2")
    data.submit(always(data, np.ones(20)), tmp_path)
    assert (tmp_path / "SST-2.tsv").read_text().splitlines()[-1] == "19\t1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("only one column", r"train.tsv:3: has 1 columns; it must have 2"),
        ("text\tpositive", r"train.tsv:3: label is 'positive'; it must be one of 0, 1"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(f"sentence\tlabel\nfine\t1\n{line}\n")
    with pytest.raises(UserError, match=expected):
        read_tsv(path, GLUE["SST-2"], labelled=True)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    table(tmp_path / "train.tsv", ["sentence", "mark"], [["fine", "1"]])
    with pytest.raises(UserError, match=r"train.tsv:1: has no column 'label'; its columns are sentence, mark"):
        read_tsv(tmp_path / "train.tsv", GLUE["SST-2"], labelled=True)


@pytest.mark.parametrize("score", ["5.1", "-0.1", "nan", "high"])
def test_a_similarity_beyond_five_is_refused(tmp_path: Path, score: str) -> None:
    table(tmp_path / "train.tsv", ["sentence1", "sentence2", "score"], [["a", "b", score]])
    with pytest.raises(UserError, match=rf"train.tsv:2: score is '{score}'; it must be a number from 0 to 5"):
        read_tsv(tmp_path / "train.tsv", GLUE["STS-B"], labelled=True)


def test_quotes_and_line_separators_are_text(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes('sentence\tlabel\r\n" an open quote\t1\r\nfirst\u2028second\t0\r\n'.encode())
    rows = read_tsv(path, GLUE["SST-2"], labelled=True)
    assert rows.texts == [['" an open quote', "first\u2028second"]] and rows.labels == [1, 0]


def test_the_official_qqp_has_broken_rows_that_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    table(tmp_path / "train.tsv", header, [["0", "1", "2", "who", "what", "1"], ["1", "3", "4", "half a question"]])
    rows = read_tsv(tmp_path / "train.tsv", GLUE["QQP"], labelled=True)
    assert rows.labels == [1] and "1 rows that lack columns" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"train.tsv:3: has 4 columns; it must have 6"):
        read_tsv(tmp_path / "train.tsv", GLUE["QQP"], labelled=False)  # predictions go by line


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").touch()
    with pytest.raises(UserError, match=r"dev.tsv: is empty"):
        read_tsv(tmp_path / "dev.tsv", GLUE["RTE"], labelled=True)


@pytest.mark.parametrize("seed", range(3))
def test_truncation_takes_from_the_longer_text_one_token_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        first, second, room = (int(number) for number in rng.integers(0, 12, 3))
        slow = [list(range(first)), list(range(second))]
        while len(slow[0]) + len(slow[1]) > room:
            slow[0 if len(slow[0]) > len(slow[1]) else 1].pop()
        assert truncate(list(range(first)), list(range(second)), room) == tuple(slow)


def test_the_hubs_data_set_gives_the_same_rows(all_glue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are those of `nyu-mll/glue`; only the download is replaced."""
    asked = []

    def load_dataset(name: str, config: str, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        made = read_tsv(all_glue / "MRPC" / "train.tsv", GLUE["MRPC"], labelled=True)
        columns = {"sentence1": made.texts[0], "sentence2": made.texts[1], "label": made.labels}
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = SentenceData(GLUE["MRPC"], None, tiny_tokenizer(), 48)
    assert from_hub.train(None) == opened(all_glue, "MRPC").train(None)
    assert asked == [("nyu-mll/glue", "mrpc", "train"), ("nyu-mll/glue", "mrpc", "validation")]


@pytest.mark.skipif(REAL is None, reason="needs real data")
@pytest.mark.parametrize(
    ("task", "train", "dev", "positive"),
    [
        ("CoLA", 8551, 1043, 721),
        ("MRPC", 3668, 408, 279),
        ("QNLI", 8999, 5463, 2761),
        ("RTE", 2490, 277, 131),
        ("SST-2", 67349, 872, 444),
        ("WNLI", 635, 71, 31),
    ],
)
def test_real_files_have_the_published_sizes(task: str, train: int, dev: int, positive: int) -> None:
    """Sizes and dev label counts of the official sets (QNLI's train file is a part of the official one)."""
    folder = Path(REAL or "") / "glue" / task
    assert len(read_tsv(folder / "train.tsv", GLUE[task], labelled=True).labels or []) == train
    labels = read_tsv(folder / "dev.tsv", GLUE[task], labelled=True).labels or []
    assert (len(labels), sum(labels)) == (dev, positive)
