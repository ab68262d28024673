"""Reading text: what is a document, what is a unit, and what happens to text that cannot be read."""

import bz2
import gzip
import json
import lzma
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backports import zstd

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig, MixedSource
from earlybert.data_prep.sources import input_files
from earlybert.data_prep.sources import rows as row_module
from earlybert.data_prep.steps import reading
from earlybert.data_prep.steps.reading import read_unit, work_units
from tests.data_prep.reading import read_texts, read_units

PLAIN = "\nThe first line of it.\r\nThe second line of it.\n \n\nAnother document of one line.\n"
READ = ["The first line of it.\nThe second line of it.", "Another document of one line."]


def text_config(*files: Path | str, text_field: str = "text", max_megabytes: float | None = None) -> CorpusConfig:
    names = [str(file) for file in files]
    return CorpusConfig(source="text", files=names, text_field=text_field, max_megabytes=max_megabytes)


def pack_in_two_frames(content: bytes) -> bytes:
    middle = len(content) // 2
    return zstd.compress(content[:middle]) + zstd.compress(content[middle:])


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstd.compress),
        (".zst", pack_in_two_frames),
    ],
)
def test_plain_and_json_text_in_every_compression(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    rows = "\n".join(json.dumps({"body": text, "id": 3}, ensure_ascii=False) for text in READ) + "\n\n"
    (tmp_path / f"a.txt{ending}").write_bytes(pack(PLAIN.encode()))
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack(rows.encode()))
    assert read_texts(text_config(tmp_path / f"a.txt{ending}")) == READ
    assert read_texts(text_config(tmp_path / f"a.jsonl{ending}", text_field="body")) == READ


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffGrüße aus dem schönen Süden.".encode())
    assert read_texts(text_config(tmp_path / "a.txt")) == ["Grüße aus dem schönen Süden."]


def test_character_without_utf8_form_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A \\ud800 surrogate stands here."}')
    assert read_texts(text_config(tmp_path / "a.jsonl")) == ["A ? surrogate stands here."]


def test_files_are_sorted_and_read_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"A document from {name}.")
    config = text_config(tmp_path / "b.txt", tmp_path / "*.txt", tmp_path / "**" / "*.txt")
    assert read_texts(config) == [f"A document from {name}." for name in ("a.txt", "b.txt", "sub/c.txt")]


def test_reading_stops_after_the_limit(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n\n".join(["x" * 1000] * 5))
    config = text_config(tmp_path / "*.txt", max_megabytes=0.0065)
    assert len(work_units(config)) == 1
    assert len(read_texts(config)) == 7


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
@pytest.mark.parametrize("stretch", [1, 7, 64, 1000])
def test_stretches_of_a_file_hold_each_document_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, stretch: int
) -> None:
    rng = np.random.default_rng(stretch)
    texts = [
        "\n".join(f"Dokument {number}, Absatz {line}: öäü " + "ж" * rng.integers(1, 40) for line in range(lines))
        for number, lines in enumerate(rng.integers(1, 5, 60))
    ]
    if ending == ".jsonl":
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" * rng.integers(1, 3) for text in texts)
    else:
        content = "\n" * 3 + "".join(text + "\n" * rng.integers(2, 6) for text in texts)
    (tmp_path / f"a{ending}").write_text(content)
    monkeypatch.setattr(input_files, "STRETCH", stretch)
    monkeypatch.setattr(reading, "SMALLEST_UNIT", stretch)
    monkeypatch.setattr(reading, "UNITS_PER_SOURCE", 1 << 30)
    config = text_config(tmp_path / f"a{ending}")
    found = read_units(config)
    assert len(found) == -(-len(content.encode()) // stretch)
    assert [document.text for unit in found for document in unit] == texts


def test_units_are_stretches_and_files_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "STRETCH", 100)
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 350)
    for name, size in (("a", 50), ("b", 60), ("c", 1000), ("d", 30)):
        (tmp_path / f"{name}.txt").write_text("x" * size)
    found = work_units(text_config(tmp_path / "*.txt"))
    stretches = [[(part.path.name, part.start, part.end) for part in unit.fragments if part.path] for unit in found]
    assert stretches == [
        [("a.txt", 0, 100), ("b.txt", 0, 100), ("c.txt", 0, 200)],
        [("c.txt", 200, 500)],
        [("c.txt", 500, 800)],
        [("c.txt", 800, 1000), ("d.txt", 0, 100)],
    ]
    assert [unit.bytes for unit in found] == [310, 300, 300, 230]
    assert len({unit.name for unit in found}) == 4
    assert pickle.loads(pickle.dumps(found)) == found == work_units(text_config(tmp_path / "*.txt"))


def test_changed_file_makes_other_units(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A document of this file.")
    (before,) = work_units(text_config(tmp_path / "a.txt"))
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    (after,) = work_units(text_config(tmp_path / "a.txt"))
    assert before != after and before.key != after.key


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"One.\nTwo \xff\xfe.\n", ["a.txt:2", "0xff", "offset 9", "UTF-8"]),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", ["a.txt:1", "0x89", "offset 0", "UTF-8"]),
        ("a.jsonl", b'{"text": "One."}\n{"text": "Two."\n', ["a.jsonl:2", "JSON"]),
        ("a.jsonl", b'{"text": "One."}\n\n{"body": "Two."}\n', ["a.jsonl:3", "'text'", "text_field"]),
        ("a.jsonl", b'{"text": 3}\n', ["a.jsonl:1", "'text'"]),
        ("a.jsonl", b'["text"]\n', ["a.jsonl:1", "'text'"]),
        ("a.jsonl", b'{"text": "One."}\n' + b"[" * 10**5, ["a.jsonl:2", "JSON", "recursion"]),
        ("a.jsonl", b'{"text": "One.", "id": ' + b"9" * 5000 + b"}", ["a.jsonl:1", "JSON", "digits"]),
        ("a.pdf", b"One.", ["a.pdf", ".txt", ".jsonl"]),
        ("a.txt.gz", b"One.", ["a.txt.gz", "cannot be read"]),
        ("a.txt.gz", gzip.compress(b"One.\n" * 999, mtime=0)[:-12], ["a.txt.gz", "cannot be read"]),
        ("a.txt.xz", b"One.", ["a.txt.xz", "cannot be read"]),
        ("a.txt.bz2", b"One.", ["a.txt.bz2", "cannot be read"]),
        ("a.txt.zst", b"One.", ["a.txt.zst", "cannot be read"]),
        ("a.txt.zst", zstd.compress(b"One.\n" * 999)[:-3], ["a.txt.zst", "cannot be read"]),
    ],
)
def test_unreadable_text_is_named(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_texts(text_config(tmp_path / name))
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_empty_file_gives_no_document(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_texts(text_config(tmp_path / "a.txt")) == []


def test_bad_line_in_a_late_stretch_has_its_number_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps({"text": f"This is document number {number}."}) for number in range(100)]
    rows[70] = '{"text"'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(input_files, "STRETCH", 200)
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 200)
    config = text_config(tmp_path / "a.jsonl")
    failed = []
    for unit in work_units(config):
        try:
            list(read_unit(unit, config, Counts()))
        except UserError as error:
            failed.append(str(error))
    # The other units can be read.
    assert len(work_units(config)) > 10 and len(failed) == 1 and "a.jsonl:71 is not JSON" in failed[0]


@pytest.mark.parametrize(
    "name",
    [
        "a [1].txt",
        "set[ab]/x*.txt",
        "set[ab]/**/x*.txt",
        "set[ab]/deep[1]/[x]*.txt",
        "set[ab]/x[1].txt",
        "*.txt",
        "what?.txt",
    ],
)
def test_names_come_before_patterns(name: str, tmp_path: Path) -> None:
    """Names with characters that mean something in patterns; where no file has the name, it is a pattern."""
    literal = tmp_path / name.replace("**/", "").replace("x*", "x1").replace("[x]*", "[x]1")
    literal.parent.mkdir(parents=True, exist_ok=True)
    literal.write_text("This is the text of the file.")
    (unit,) = work_units(text_config(tmp_path / name))
    assert [fragment.path for fragment in unit.fragments] == [literal]


def test_pattern_without_a_match_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches .*nothing-\*\.txt"):
        work_units(text_config(tmp_path / "nothing-*.txt"))


def test_a_folder_is_all_its_files_of_a_known_ending(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.jsonl", "sub/deep/c.txt.gz", "README.md", "sub/picture.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        content = (
            b'{"text": "A document from sub/a.jsonl."}' if "jsonl" in name else f"A document from {name}.".encode()
        )
        (tmp_path / "set" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    expected = [f"A document from {name}." for name in ("b.txt", "sub/a.jsonl", "sub/deep/c.txt.gz")]
    assert read_texts(text_config(tmp_path / "set")) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file in the folder .*empty ends in \.txt or \.jsonl or \.parquet"):
        work_units(text_config(tmp_path / "empty"))


def test_rows_without_text_are_counted_and_skipped_up_to_a_share(tmp_path: Path) -> None:
    rows: list[object] = [{"text": f"This is document number {number}."} for number in range(100)]
    for number, row in ((3, {"text": None}), (40, {"body": "x"}), (41, [1]), (77, {"text": 3}), (99, {"text": ""})):
        rows[number] = row
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, counts = text_config(tmp_path / "a.jsonl"), Counts()
    (unit,) = work_units(config)
    assert len(list(read_unit(unit, config, counts))) == 95
    # The empty text is one: as a document it is too short.
    assert (counts.rules["row: no text"].dropped, counts.rules["document: short"].dropped) == (4, 1)
    assert counts.rules["row: no text"].examples == [f"{tmp_path}/a.jsonl:{line}" for line in (4, 41, 42)]
    strict = replace(config, max_rows_without_text=0.039)
    with pytest.raises(UserError, match=r"a\.jsonl:4 has no text in the field 'text' .* 4 of 100 rows .* is 0\.039"):
        read_texts(strict)


def test_wrong_field_is_told_before_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_module, "FIRST_ROWS", 10)
    (tmp_path / "a.jsonl").write_text('{"body": "One."}\n' * 10 + "this is not JSON")
    with pytest.raises(UserError, match=r"a\.jsonl:1 has no text .* 10 of 10 rows have none"):
        read_texts(text_config(tmp_path / "a.jsonl"))


def test_saved_data_sets_and_single_files(tmp_path: Path) -> None:
    import datasets

    texts = [f"Row {number}, of the data set." for number in range(9)]
    data = datasets.Dataset.from_dict({"body": [*texts[:8], None, texts[8]]})
    data.save_to_disk(tmp_path / "saved", num_shards=3)
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "splits")
    data.to_csv(tmp_path / "one.csv")
    data.to_csv(tmp_path / "one.tsv", sep="\t")
    data.to_json(tmp_path / "one.jsonl")
    data.to_parquet(tmp_path / "one.parquet")
    for name, split, units in (
        ("saved", "train", 3),
        ("splits", "test", 1),
        ("one.csv", "train", 1),
        ("one.tsv", "train", 1),
        ("one.jsonl", "train", 1),
        ("one.parquet", "train", 1),
    ):
        config = CorpusConfig(
            source="hub",
            hub_name=str(tmp_path / name),
            hub_split=split,
            text_field="body",
            max_rows_without_text=0.4,
        )
        found = read_units(config)
        assert [document.text for unit in found for document in unit] == texts, name
        assert len(found) == units, name
    with pytest.raises(
        UserError, match=r"splits cannot be loaded \(it has no split 'train', but test; see hub_split\)"
    ):
        work_units(CorpusConfig(source="hub", hub_name=str(tmp_path / "splits"), text_field="body"))


def test_hub_streams_the_files_of_a_local_data_set_apart(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    texts = [f"Row {number} of the data set." for number in range(9)]
    for part in range(3):
        rows = [json.dumps({"body": text}) + "\n" for text in texts[3 * part : 3 * part + 3]]
        (tmp_path / "set" / f"train-{part}.jsonl").write_text("".join(rows))
    config = CorpusConfig(source="hub", hub_name=str(tmp_path / "set"), text_field="body")
    assert [[document.text for document in unit] for unit in read_units(config)] == [texts[:3], texts[3:6], texts[6:]]

    with pytest.raises(
        UserError, match=r"row 0 in part 0 .* fields body has no text in the field 'text'.* 3 of 3 rows"
    ):
        read_texts(CorpusConfig(source="hub", hub_name=str(tmp_path / "set")))
    with pytest.raises(UserError, match=r"hub_name: the data set .* cannot be loaded .*nosplit"):
        work_units(CorpusConfig(source="hub", hub_name=str(tmp_path / "set"), hub_split="nosplit"))
    (tmp_path / "set" / "train-1.jsonl").write_text('{"body": "Good."}\n{"body"\n')
    with pytest.raises(UserError, match=r"in part 1 of .*set cannot be read"):
        read_texts(config)


def mix_config(tmp_path: Path, seed: int = 1, **weights: float) -> CorpusConfig:
    mix = []
    for name, weight in weights.items():
        text = "\n\n".join(f"Document number {number} of the source {name}." for number in range(1000))
        (tmp_path / f"{name}.txt").write_text(text)
        mix.append(MixedSource(name=name, weight=weight, source="text", files=[str(tmp_path / f"{name}.txt")]))
    return CorpusConfig(source="mix", mix=mix, seed=seed)


def test_weights_of_a_mix_are_copies_of_documents(tmp_path: Path) -> None:
    config = mix_config(tmp_path, once=1, twice=2, some=0.3, more=1.6)
    found = {unit.source.name: list(read_unit(unit, config, Counts())) for unit in work_units(config)}
    assert list(found) == ["once", "twice", "some", "more"]
    copies = {name: [document.copies for document in group] for name, group in found.items()}
    assert copies["once"] == [1] * 1000 and copies["twice"] == [2] * 1000
    # Within five standard deviations of what the fraction says.
    assert set(copies["some"]) == {1} and abs(len(copies["some"]) - 300) < 75
    assert set(copies["more"]) == {1, 2} and abs(sum(copies["more"]) - 1600) < 80
    assert read_units(config) == read_units(config)
    other = read_units(mix_config(tmp_path, once=1, twice=2, some=0.3, more=1.6, seed=2))[2]
    assert {document.text for document in other} != {document.text for document in found["some"]}


def test_documents_that_the_weight_leaves_out_are_counted(tmp_path: Path) -> None:
    config = mix_config(tmp_path, some=0.3)
    counts = Counts()
    kept = list(read_unit(work_units(config)[0], config, counts))
    rule = counts.rules["document: weight of its source"]
    assert len(kept) + rule.dropped == 1000 and len(rule.examples) == 3


def test_digest_ignores_case_and_white_space_only(tmp_path: Path) -> None:
    texts = ["The same words.\nTwice here.", "THE  same words. Twice\there.", "The same words, twice here."]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    first, second, third = (document.digest for document in read_units(text_config(tmp_path / "a.jsonl"))[0])
    assert first == second != third and len(first) == 16


def test_pydocs_gives_the_same_prose_again_and_no_paragraph_twice() -> None:
    config = CorpusConfig(max_megabytes=0.2)
    first = read_texts(config)
    assert first == read_texts(config)
    paragraphs = [paragraph for text in first for paragraph in text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs) > 100
    text = " ".join(first)
    # English prose: its commonest words make up about a tenth of it or more; code and tables have hardly any.
    assert sum(text.lower().split().count(word) for word in ("the", "a", "of", "is", "to")) > 0.1 * len(text.split())
    # Prose may name the prompt, but has no example with one.
    assert ">>> " not in text and "::" not in text
