"""Reading text: what is a document, and what happens to text that cannot be read."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.errors import CorpusError
from earlybert.data_prep.sentences import read_sentences, split_sentences, write_sentences
from earlybert.data_prep.sources import documents

PLAIN = "\nFirst line.\r\nSecond line.\n \n\nOther document.\n"
READ = ["First line.\nSecond line.", "Other document."]


def read(*files: Path | str, text_field: str = "text", max_megabytes: float | None = None) -> list[str]:
    names = [str(file) for file in files]
    return list(documents(CorpusConfig(source="text", files=names, text_field=text_field, max_megabytes=max_megabytes)))


@pytest.mark.parametrize(
    ("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_plain_and_json_text_in_every_compression(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    rows = "\n".join(json.dumps({"body": text, "id": 3}, ensure_ascii=False) for text in READ) + "\n\n"
    (tmp_path / f"a.txt{ending}").write_bytes(pack(PLAIN.encode()))
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack(rows.encode()))
    assert read(tmp_path / f"a.txt{ending}") == READ
    assert read(tmp_path / f"a.jsonl{ending}", text_field="body") == READ


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffGrüße.".encode())
    assert read(tmp_path / "a.txt") == ["Grüße."]


def test_character_without_utf8_form_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A \\ud800 surrogate."}')
    assert read(tmp_path / "a.jsonl") == ["A ? surrogate."]


def test_files_are_sorted_and_read_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"From {name}.")
    patterns = [tmp_path / "b.txt", tmp_path / "*.txt", tmp_path / "**" / "*.txt"]
    assert read(*patterns) == ["From a.txt.", "From b.txt.", "From sub/c.txt."]


def test_reading_stops_after_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(["x" * 1000] * 50))
    assert len(read(tmp_path / "a.txt", max_megabytes=0.0095)) == 10


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"One.\nTwo \xff\xfe.\n", ["a.txt:2", "0xff", "offset 9", "UTF-8"]),
        ("a.jsonl", b'{"text": "One."}\n{"text": "Two."\n', ["a.jsonl:2", "JSON"]),
        ("a.jsonl", b'{"text": "One."}\n\n{"body": "Two."}\n', ["a.jsonl:3", "'text'", "text_field"]),
        ("a.jsonl", b'{"text": 3}\n', ["a.jsonl:1", "'text'"]),
        ("a.jsonl", b'["text"]\n', ["a.jsonl:1", "'text'"]),
        ("a.txt", b" \n\t\n", ["a.txt", "holds no text"]),
        ("a.txt", b"", ["a.txt", "holds no text"]),
        ("a.pdf", b"One.", ["a.pdf", ".txt", ".jsonl"]),
        ("a.txt.gz", b"One.", ["a.txt.gz", "cannot be read"]),
        ("a.txt.gz", gzip.compress(b"One.\n" * 999)[:-12], ["a.txt.gz", "cannot be read"]),
        ("a.txt.xz", b"One.", ["a.txt.xz", "cannot be read"]),
        ("a.txt.bz2", b"One.", ["a.txt.bz2", "cannot be read"]),
    ],
)
def test_unreadable_text_is_named(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as raised:
        read(tmp_path / name)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_pattern_without_a_match_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file matches .*nothing-\*\.txt"):
        read(tmp_path / "nothing-*.txt")


def test_hub_reads_a_local_data_set_and_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in READ))
    name = str(tmp_path / "set")
    assert list(documents(CorpusConfig(source="hub", hub_name=name, text_field="body"))) == READ
    with pytest.raises(CorpusError, match=r"row 0 .* 'text'; its fields are body"):
        list(documents(CorpusConfig(source="hub", hub_name=name)))
    with pytest.raises(CorpusError, match=r"hub_name: the data set .* cannot be loaded .*nosplit"):
        list(documents(CorpusConfig(source="hub", hub_name=name, text_field="body", hub_split="nosplit")))


def test_sentences_survive_the_file_between(tmp_path: Path) -> None:
    texts = ["Dr. Smith came  in. He\u2028left!\nNew\x0bparagraph", " \n ", "Is it? Yes."]
    expected = [["Dr. Smith came in.", "He left!", "New paragraph"], ["Is it?", "Yes."]]
    assert write_sentences(texts, tmp_path / "sentences.txt") == 2
    assert list(read_sentences(tmp_path / "sentences.txt")) == expected
    assert split_sentences(texts[0]) == expected[0]


def test_pydocs_gives_the_same_prose_again_and_no_paragraph_twice() -> None:
    first = list(islice(documents(CorpusConfig()), 60))
    assert first == list(islice(documents(CorpusConfig()), 60))
    paragraphs = [paragraph for text in first for paragraph in text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs) > 100
    text = " ".join(first)
    # English prose: its commonest words make up about a tenth of it or more; code and tables have hardly any.
    assert sum(text.lower().split().count(word) for word in ("the", "a", "of", "is", "to")) > 0.1 * len(text.split())
    assert ">>>" not in text and "::" not in text
