"""What a preparation warns of, and what of a vocabulary it refuses."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.tokens.tokenizer import load_tokenizer


def hints(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    """What the preparation of a text warns of."""
    (tmp_path / "text.txt").write_text(text)
    fields: dict[str, Any] = {"vocab_size": 300, "lengths": [32], "validation_fraction": 0.2} | options
    prepare(CorpusConfig(source="text", files=[str(tmp_path / "text.txt")], **fields), tmp_path / "corpus")
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]


@pytest.mark.parametrize(
    ("objective", "sentences", "warns"), [("nsp", 1, True), ("nsp", 9, False), ("full-sentences", 1, False)]
)
def test_documents_of_one_sentence_are_named(
    objective: str, sentences: int, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = (
        " ".join(f"Number {document * 10 + line} says what it is." for line in range(sentences))
        for document in range(60)
    )
    found = hints("\n\n".join(documents), tmp_path, capsys, objective=objective)
    assert len(found) == warns and all("100% of the second segments are random" in hint for hint in found)


CASED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789."


def cased_vocabulary(folder: Path) -> Path:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CASED, *(f"##{letter}" for letter in CASED)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return folder / "vocab.txt"


NUMBERED = "\n\n".join(f"Here is text {number}. It has two sentences. And one more." for number in range(60))


@pytest.mark.parametrize("bare", [True, False])
def test_cased_vocabulary_used_uncased_is_refused(
    bare: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, fits = cased_vocabulary(tmp_path), "--lowercase false fits it"
    if not bare:
        given, fits = tmp_path / "folder", "its tokenizer_config.json must say do_lower_case false"
        load_tokenizer(str(tmp_path / "vocab.txt"), lowercase=True).save_pretrained(given)
    with pytest.raises(UserError, match=f"52 of the 131 tokens of {given} .*for example ##A,.*{fits}"):
        hints(NUMBERED, tmp_path, capsys, tokenizer=str(given))
    assert not (tmp_path / "corpus").exists() and not (tmp_path / "corpus.partial" / "corpus").exists()


def test_cased_vocabulary_used_cased_or_by_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = cased_vocabulary(tmp_path)
    assert hints(NUMBERED, tmp_path, capsys, tokenizer=str(given), lowercase=False) == []
    expected = Corpus.open(tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert hints(NUMBERED, tmp_path, capsys, tokenizer=str(given)) == []
    assert Corpus.open(tmp_path / "corpus").manifest["files"] == expected.manifest["files"]


HINDI = "मरीज को तीन दिन से बुखार और खांसी है। उसे आज दवा नंबर {0} दी गई। कल फिर जांच {0} होगी।"


def test_vowel_signs_stay_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n\n".join(HINDI.format(number) for number in range(80))
    assert hints(text, tmp_path, capsys) == []
    tokenizer = Corpus.open(tmp_path / "corpus").tokenizer
    ids = tokenizer("से बुखार और खांसी", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "से बुखार और खांसी"
    shutil.rmtree(tmp_path / "corpus")
    (found,) = hints(text, tmp_path, capsys, strip_accents=True)
    assert re.search(
        r"Warning: \d\d\.\d% of the words lose accents or vowel signs, for example (\S+) becomes (\S+);", found
    )
    assert "--strip_accents false" in found


@pytest.mark.parametrize(("accents", "warns"), [(4, False), (12, True)])
def test_accents_that_a_given_tokenizer_takes_off_are_named(
    accents: int, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 660 words and a few more; the threshold is 1 %."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789."
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    text = NUMBERED + "\n\n" + "\n\n".join(f"A naïve text comes as number {number}." for number in range(accents))
    found = hints(text, tmp_path, capsys, tokenizer=str(tmp_path / "vocab.txt"))
    assert len(found) == warns
    if warns:
        assert f"{accents / (660 + 7 * accents):.1%} of the words" in found[0]
        assert "for example naïve becomes naive;" in found[0]


@pytest.mark.parametrize(("repeats", "warns"), [(0, False), (1, False), (4, True)])
def test_lines_that_repeat_are_named(
    repeats: int, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 104 other sentences; a repeated document is dropped and does not count, short lines may repeat."""
    line = "This article needs more references than it has."
    documents = [
        f"Document {number} has a long first sentence of its own. And a second one, {number}, that is long, too. Yes."
        for number in range(10, 62)
    ]
    text = [*(f"{document} {line if number <= repeats else ''}" for number, document in enumerate(documents))]
    found = hints("\n\n".join([*text, *text]), tmp_path, capsys)
    assert len(found) == warns
    if warns:
        assert f"{repeats / (2 * len(documents) + repeats + 1):.1%} of the sentences" in found[0]
        assert f'"{line[:40]}" ({repeats + 1} times)' in found[0]
