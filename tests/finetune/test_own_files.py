"""Fine-tuning on files of one's own: what is read, learnt and saved, and what is refused in a sentence."""

import csv
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from earlybert.core.errors import UserError
from earlybert.finetune.command import require_same
from earlybert.finetune.config import Settings
from earlybert.finetune.results import read_results
from earlybert.finetune.tasks.entities import entities, entity_scores
from earlybert.finetune.tasks.own_files import sorted_labels
from earlybert.finetune.tasks.own_texts import OWN_TEXTS
from earlybert.finetune.tasks.own_words import OWN_WORDS, OwnWordData
from earlybert.finetune.text import Features
from tests.finetune.made_up import VOCABULARY, tiny_tokenizer, write_names, write_reviews
from tests.finetune.test_finetune import FAST, refusal
from tests.in_process import run_here

SMALL = ("--max-length", "48", "--draw.width_multiple", "8", *FAST)
TEXTS = ("--task", "text-classification", "--text", "review", "--label", "verdict")
WORDS = ("--task", "token-classification")


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_reviews(folder)
    write_names(folder)
    return folder


def files(folder: Path, kind: str) -> tuple[str, ...]:
    return ("--train", str(folder / f"train.{kind}"), "--validation", str(folder / f"validation.{kind}"))


def finetune(folder: Path, *arguments: str) -> str:
    status, output = run_here(folder, "finetune", *SMALL, *arguments)
    assert status == 0, output
    return output


def test_texts_are_classified_and_saved(bert: Path, own: Path, tmp_path: Path) -> None:
    """Their labels are the files' own, by their names in every model that is saved."""
    given = ("--model", str(bert), "--out", "out", *TEXTS, *files(own, "csv"), "--export", "[earlybert,bert]")
    given += ("--epochs", "6", "--ticket-epochs", "5", "--method", "dense", "earlybert")
    given += ("--predict", "true", "--seed", "1")
    output = finetune(tmp_path, *given)
    assert "text-classification" in output and "majority class" in output and "50.00" in output
    found = read_results(tmp_path / "out")
    for method in ("dense", "earlybert"):
        (result,) = found["text-classification", method]
        assert result["scores"]["accuracy"] > 0.85 and result["examples"] == 96
        folder = tmp_path / "out" / "text-classification" / method / "seed-1"
        scores = []
        for form in ("earlybert", "bert"):
            model = AutoModelForSequenceClassification.from_pretrained(folder / "export" / form).eval()
            assert model.config.id2label == {0: "against", 1: "in favour"}
            row = AutoTokenizer.from_pretrained(folder / "export" / form)("tree, good river", return_tensors="pt")
            scores.append(model(**row).logits)
            assert scores[-1].argmax() == 1
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)
        lines = (folder / "predictions" / "predictions.jsonl").read_text().splitlines()
        right = [json.loads(line)["label"] == ("against", "in favour")[index % 2] for index, line in enumerate(lines)]
        assert np.mean(right) == pytest.approx(result["scores"]["accuracy"]) and len(lines) == 32
    # The same again computes nothing, other files are another folder's.
    assert "text-classification, dense" not in finetune(tmp_path, *given)
    status, refused = run_here(tmp_path, "finetune", *SMALL, *given, "--validation", str(own / "train.csv"))
    assert status == 2 and "error: validation is" in refused


def test_a_folder_is_of_files_that_stay_the_same(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    given = {"train": write_json(train, GOOD_TEXTS), "validation": None, "ticket": None}
    require_same(tmp_path, given)
    require_same(tmp_path, given)
    write_json(train, GOOD_TEXTS[::-1])
    with pytest.raises(UserError, match=r"^--train is .*train\.jsonl, which has changed since .* was begun"):
        require_same(tmp_path, given)
    (tmp_path / "config.json").write_text(json.dumps(given))  # as older versions wrote it
    require_same(tmp_path, given)


def test_words_are_tagged_and_saved(bert: Path, own: Path, tmp_path: Path) -> None:
    """By the best of two rates, dense and with a ticket; a finished try is not repeated."""
    given = ("--model", str(bert), "--out", "out", *WORDS, *files(own, "jsonl"), "--export", "[earlybert,bert]")
    given += ("--learning-rate", "1e-7", "3e-3", "--ticket-learning-rate", "1e-7", "3e-3")
    given += ("--epochs", "10", "--ticket-epochs", "10", "--predict", "true")
    output = finetune(tmp_path, *given, "--method", "dense", "earlybert")
    assert "token-classification" in output and "best on a held-out tenth" in output
    found = read_results(tmp_path / "out")
    for method in ("dense", "earlybert"):
        (result,) = found["token-classification", method]
        assert result["scores"]["f1"] > 0.85 and result["scores"]["accuracy"] > 0.9
        assert [tried["score"] for tried in result["tried"]] == sorted(tried["score"] for tried in result["tried"])
        folder = tmp_path / "out" / "token-classification" / method / "seed-42"
        words = ["good", "glad", "tree", "bad", "river"]
        for form in ("earlybert", "bert"):
            model = AutoModelForTokenClassification.from_pretrained(folder / "export" / form)
            assert list(model.config.id2label.values()) == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
            tokenizer = AutoTokenizer.from_pretrained(folder / "export" / form)
            tag = pipeline("token-classification", model, tokenizer=tokenizer)
            named: Any = tag(" ".join(words))
            assert {one["word"]: one["entity"] for one in named} == {"good": "B-PER", "glad": "I-PER", "bad": "B-LOC"}
        predicted = [json.loads(line)["tags"] for line in (folder / "predictions" / "predictions.jsonl").open()]
        truth = [json.loads(line)["tags"] for line in (own / "validation.jsonl").open()]
        assert result["scores"] == pytest.approx(entity_scores(predicted, truth))


def test_every_method_tags_words(bert: Path, own: Path, tmp_path: Path) -> None:
    methods = ("dense", "shortened", "earlybert", "random", "all", "layerdrop")
    given = ("--model", str(bert), *WORDS, *files(own, "jsonl"), "--max-train-examples", "16", "--export", "[]")
    finetune(tmp_path, *given, "--out", "out", "--method", *methods, "--epochs", "1", "--ticket-epochs", "1")
    assert {method for _, method in read_results(tmp_path / "out")} == set(methods)
    # On masked tokens of the words, and in smaller micro-batches: the same updates of dense training.
    finetune(tmp_path, *given, "--out", "mlm", "--search-objective", "mlm", "--ticket-epochs", "1")
    finetune(tmp_path, *given, "--out", "parts", "--method", "dense", "--epochs", "1", "--micro-batch", "2")
    whole, parts = (
        read_results(tmp_path / name)["token-classification", "dense"][0]["scores"] for name in ("out", "parts")
    )
    assert whole == pytest.approx(parts, abs=0.02)


def write_json(path: Path, rows: list[Any]) -> str:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    """What looks like a number or like nothing is text; a pair is two segments; integers are in the order of size."""
    rows = [["007", 'who said "a tree", then', 10], ["NA", "null", 9], ["old  house", "line\u2028sings", 10]]
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        with (tmp_path / f"x.{kind}").open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=delimiter).writerows([["first", "second", "y"], *rows])
    objects = [dict(zip(("first", "second", "y"), row, strict=True)) for row in rows]
    for kind in ("json", "jsonl"):
        write_json(tmp_path / f"x.{kind}", objects)
        (tmp_path / f"x.{kind}").write_text("\ufeff\n  \n " + (tmp_path / f"x.{kind}").read_text())
    made = []
    for kind in ("csv", "tsv", "json", "jsonl"):
        path = str(tmp_path / f"x.{kind}")
        settings = Settings(train=path, validation=path, text="first", text_pair="second", label="y")
        data = OWN_TEXTS.open(None, tiny_tokenizer(), settings.for_task(OWN_TEXTS.defaults))
        assert data.task.classes == ("9", "10")
        made.append(data.train(None))
    assert made[0] == made[1] == made[2] == made[3]
    assert [row["labels"] for row in made[0]] == [1, 0, 1]
    words = [VOCABULARY[number] for number in made[0][0]["input_ids"]]
    assert (
        words[:5] == ["[CLS]", "0", "##0", "##7", "[SEP]"] and made[0][0]["token_type_ids"].count(1) == len(words) - 5
    )


def test_a_text_may_be_a_whole_book(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"text,label\n{'tree ' * 40_000},x\nriver,y\n")
    settings = Settings(train=str(tmp_path / "x.csv"), validation=str(tmp_path / "x.csv"), max_length=20)
    rows = OWN_TEXTS.open(None, tiny_tokenizer(), settings.for_task(OWN_TEXTS.defaults)).train(None)
    assert [len(row["input_ids"]) for row in rows] == [20, 3]


def test_half_a_character_is_a_question_mark(tmp_path: Path) -> None:
    """JSON can hold a lone surrogate, as where a post is cut in the middle of an emoji; a tokenizer takes none."""
    write_json(tmp_path / "x.jsonl", [{"text": "tree\ud83d", "label": "x"}, {"text": "tree?", "label": "y"}])
    settings = Settings(train=str(tmp_path / "x.jsonl"), validation=str(tmp_path / "x.jsonl"))
    cut, whole = OWN_TEXTS.open(None, tiny_tokenizer(), settings.for_task(OWN_TEXTS.defaults)).train(None)
    assert cut["input_ids"] == whole["input_ids"]
    write_json(tmp_path / "y.jsonl", [{"tokens": ["tree", own], "tags": ["O", "B"]} for own in ("\ud83d", "?")])
    cut, whole = opened(tmp_path / "y.jsonl", 48).train(None)
    assert cut == whole


def test_labels_of_equal_numbers_are_always_in_the_same_order() -> None:
    """A set has its own order in every process, and so on every rank."""
    names = [f"{'0' * zeros}7" for zeros in range(40)]
    assert sorted_labels(set(names), Path("x.csv"), "label") == tuple(sorted(names))


def opened(path: Path, max_length: int) -> OwnWordData:
    settings = Settings(train=str(path), validation=str(path), max_length=max_length)
    return OWN_WORDS.open(None, tiny_tokenizer(), settings.for_task(OWN_WORDS.defaults))


def test_the_first_piece_of_a_word_is_tagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And words beyond the cut are said, and not scored."""
    path = tmp_path / "x.jsonl"
    write_json(path, [{"tokens": ["good", "xyz", "river", "bad"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]}] * 2)
    (row, _) = opened(path, 48).train(None)
    assert [VOCABULARY[number] for number in row["input_ids"]] == (
        ["[CLS]", "good", "x", "##y", "##z", "river", "bad", "[SEP]"]
    )
    # Sorted: B-LOC, B-PER, I-PER, O.
    assert row["labels"] == [-100, 1, 2, -100, -100, 3, 0, -100]
    assert capsys.readouterr().err == ""
    data = opened(path, 6)
    assert data.train(None)[0]["labels"] == [-100, 1, 2, -100, -100, -100]
    assert f"{path}: 4 of 8 words have no token among the first 6" in capsys.readouterr().err

    def predict(rows: list[Features]) -> tuple[np.ndarray]:
        assert all("labels" not in row for row in rows)
        return (np.tile(np.eye(4, dtype=np.float32)[[3, 1, 3, 0, 0, 0]], (len(rows), 1, 1)),)

    # Of two words one is right, and the entity of both words is found only in part.
    assert data.evaluate(predict, None) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.5}


def by_spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """CoNLL's two rules for every pair of neighbours, and every span of words tried."""

    def parts(place: int) -> tuple[str, str]:
        tag = tags[place] if 0 <= place < len(tags) else "O"
        return tag[0], tag[2:]

    def starts(place: int) -> bool:
        (before, type_before), (here, kind) = parts(place - 1), parts(place)
        return here in "BS" or (before in "ESO" and here in "EI") or (here != "O" and type_before != kind)

    def ends(place: int) -> bool:
        (here, kind), (after, type_after) = parts(place), parts(place + 1)
        return here in "ES" or (here in "BI" and after in "BSO") or (here != "O" and kind != type_after)

    spans = itertools.combinations(range(len(tags) + 1), 2)
    return {
        (parts(first)[1], first, last)
        for first, last in spans
        if starts(first)
        and ends(last - 1)
        and not any(starts(place) for place in range(first + 1, last))
        and not any(ends(place) for place in range(first, last - 1))
        and all(tag != "O" for tag in tags[first:last])
    }


def test_entities_are_those_of_conll() -> None:
    generator = random.Random(0)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))]
    predicted = [[generator.choice(tags) for _ in range(generator.randint(1, 9))] for _ in range(400)]
    truth = [[tag if generator.random() < 0.6 else generator.choice(tags) for tag in row] for row in predicted]
    counts = np.zeros(3)
    for row, true in zip(predicted, truth, strict=True):
        assert entities(row) == by_spans(row), row
        counts += [len(by_spans(row) & by_spans(true)), len(by_spans(row)), len(by_spans(true))]
    right, found, wanted = counts
    scores = entity_scores(predicted, truth)
    assert (scores["precision"], scores["recall"]) == pytest.approx((right / found, right / wanted))
    assert scores["f1"] == pytest.approx(2 / (found / right + wanted / right)) and 0.2 < scores["f1"] < 0.9
    # Without prefixes a run of equal tags is one entity; ORG is not O.
    assert entities(["ORG", "ORG", "O", "PER", "ORG"]) == {("ORG", 0, 2), ("PER", 3, 4), ("ORG", 4, 5)}
    # Numbers are types, whatever they stand for.
    assert entities(["0", "0", "3", "4"]) == {("0", 0, 2), ("3", 2, 3), ("4", 3, 4)}
    wrong = entity_scores([["8"] * 5], [["0", "3", "4", "0", "7"]])
    assert wrong == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.0}


GOOD_TEXTS = [{"text": "fine tree", "label": "x"}, {"text": "bad tree", "label": "y"}]
GOOD_WORDS = [{"tokens": ["a", "tree"], "tags": ["O", "B"]}]
BAD = [
    ("text-classification", GOOD_TEXTS, [{"text": "", "label": "x"}], 'v.jsonl:1: text is ""; it must be text'),
    ("text-classification", GOOD_TEXTS, [*GOOD_TEXTS, {"text": 5, "label": "x"}], "v.jsonl:3: text is 5; it must be"),
    ("text-classification", GOOD_TEXTS, [{"txt": "a", "label": "x"}], "v.jsonl:1: has no column 'text' (--text)"),
    ("text-classification", GOOD_TEXTS, [{"text": "a", "label": "z"}], "v.jsonl:1: label is 'z', which no training"),
    ("text-classification", GOOD_TEXTS, [{"text": "a", "label": 1.5}], "v.jsonl:1: label is 1.5; it must be text or"),
    ("text-classification", GOOD_TEXTS, [], "v.jsonl: holds no examples"),
    ("text-classification", GOOD_TEXTS, ["a"], 'v.jsonl:1: is "a"; it must be an object'),
    ("text-classification", GOOD_TEXTS[:1], GOOD_TEXTS, "t.jsonl: label is always 'x'; there must be two labels"),
    ("token-classification", GOOD_WORDS, [{"tokens": ["a"], "tags": []}], "v.jsonl:1: tags is []; it must be a list"),
    (
        "token-classification",
        GOOD_WORDS,
        [{"tokens": ["a"], "tags": ["O", "B"]}],
        "v.jsonl:1: has 1 tokens and 2 tags; each word must have one tag",
    ),
    (
        "token-classification",
        GOOD_WORDS,
        [{"tokens": "a b", "tags": ["O"]}],
        'v.jsonl:1: tokens is "a b"; it must',
    ),
    (
        "token-classification",
        GOOD_WORDS,
        [{"tokens": ["a"], "tags": ["I"]}],
        "v.jsonl:1: tags is 'I', which no",
    ),
    ("token-classification", GOOD_WORDS, [{"tokens": [1], "tags": ["O"]}], "v.jsonl:1: tokens has 1; every word must"),
]


@pytest.mark.parametrize(("task", "train", "validation", "expected"), BAD, ids=[line[-1] for line in BAD])
def test_bad_rows_are_one_sentence(
    task: str,
    train: list[Any],
    validation: list[Any],
    expected: str,
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--train", write_json(tmp_path / "t.jsonl", train)]
    given += ["--validation", write_json(tmp_path / "v.jsonl", validation), "--out", str(tmp_path / "out")]
    assert expected in refusal(monkeypatch, capsys, "--model", str(bert), "--task", task, *given, *SMALL)
    assert not (tmp_path / "out").exists()


def test_bad_files_are_one_sentence(
    bert: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        given = ("--model", str(bert), "--out", str(tmp_path / "out"), *SMALL, *arguments)
        sentence = refusal(monkeypatch, capsys, *given)
        assert not (tmp_path / "out").exists()
        return sentence

    def beside(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return refused(*TEXTS, "--train", str(own / "train.csv"), "--validation", str(tmp_path / name))

    assert "--train is missing; --task text-classification needs --train FILE" in refused(*TEXTS)
    given = ("--train", str(own / "train.csv"))
    assert "--validation is missing" in refused(*TEXTS, *given)
    assert "nowhere.csv: cannot be read (No such file" in refused(*TEXTS, *given, "--validation", "nowhere.csv")
    assert "x.txt: is of no known kind; its name must end with .csv, .tsv, .json, .jsonl" in beside("x.txt", b"")
    assert "x.csv:2: has not 2 fields as the first line" in beside("x.csv", b"review,verdict\na, b,against\n")
    assert "y.csv:1: has no column" not in beside("y.csv", b"review\n")
    assert "z.csv:3: has no column 'verdict' (--label); its columns are review" in beside("z.csv", b'review\n"a\nb"\n')
    assert "q.csv:3: is not a row of csv (',' expected" in beside("q.csv", b'review,verdict\na,against\n"b" c,x\n')
    assert "o.tsv:2: is not a row of tsv (unexpected end" in beside("o.tsv", b'review\tverdict\n"a\tx\nb\ty\n')
    assert "u.csv: is not UTF-8; it must be text" in beside("u.csv", b"review,verdict\n\xff,against\n")
    assert "x.jsonl:1: is not valid JSON" in beside("x.jsonl", b'{"review": \n')
    assert "train is" in (found := refused("--task", "SST-2", *given)) and "not SST-2" in found
    assert "tags is 'ner', which is for --task token-classification" in refused(*TEXTS, *given, "--tags", "ner")
