"""Parquet files: every file source reads them, by row groups, and says which row of which file is wrong."""

import gzip
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from earlybert.core.errors import UserError
from earlybert.data_prep.commands.prepare import main
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.steps import reading
from earlybert.data_prep.steps.reading import work_units
from tests.data_prep.reading import read_texts, read_units

TEXTS = [f"Row number {number} of it.\nIts second line, öäü." for number in range(10)]


def write(path: Path, texts: object, column: str = "text", **options: Any) -> None:
    table = pyarrow.table({"id": range(len(texts)), column: texts})  # type: ignore[arg-type]
    parquet.write_table(table, path, **options)


def config_for(path: Path, source: str = "text", column: str = "text") -> CorpusConfig:
    return CorpusConfig(source=source, files=[str(path)], text_field=column)


@pytest.mark.parametrize("rows", [1, 3, 10])
@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_every_row_is_read_once_whatever_the_row_groups_and_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, kind: str
) -> None:
    column = pyarrow.array(TEXTS)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    write(tmp_path / "a.parquet", column, "the.body", row_group_size=rows)
    config = config_for(tmp_path / "a.parquet", column="the.body")
    assert read_texts(config) == TEXTS and len(work_units(config)) == 1
    assert (work_units(config)[0].fragments[0].start, work_units(config)[0].fragments[0].end) == (0, -(-10 // rows))
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 1)
    apart = read_units(config)
    assert [document.text for unit in apart for document in unit] == TEXTS
    assert list(map(len, apart)) == [min(rows, 10 - first) for first in range(0, 10, rows)]


def test_books_are_rows_and_chapters_documents(tmp_path: Path) -> None:
    book = "CHAPTER I.\n\nIt was a long day for all who\nhad to wait.\n\nCHAPTER II.\n\nIn the end the sun came out."
    texts = ["It was a long day for all who had to wait.", "In the end the sun came out."]
    write(tmp_path / "a.parquet", [book, book.replace("long", "short")])
    short = texts[0].replace("long", "short")
    assert read_texts(config_for(tmp_path / "a.parquet", "books")) == [*texts, short, texts[1]]
    (tmp_path / "a.jsonl").write_text('{"text": "' + book.replace("\n", "\\n") + '"}\n')
    assert read_texts(config_for(tmp_path / "a.jsonl", "books")) == texts


def test_file_without_rows_gives_no_document(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pyarrow.array([], pyarrow.string()))
    assert read_texts(config_for(tmp_path / "a.parquet")) == []


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_corrupt_and_truncated_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    options: dict[str, Any] = {
        "row_group_size": 5,
        "compression": "none",
        "write_page_checksum": True,
        "use_dictionary": False,
    }
    write(path, TEXTS, **options)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"^files: .*a\.parquet cannot be read as Parquet \(.*\)\.$"):
        work_units(config_for(path))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^files: .*a\.parquet cannot be read as Parquet \(.*\)\.$"):
        work_units(config_for(path))
    path.write_bytes(content)
    # The first letter of a row of the second group.
    flip(path, content.index(b"Row number 7"))
    with pytest.raises(UserError, match=r"^.*a\.parquet: row 0 of row group 1 has no text that can be read \(.*\)\.$"):
        read_texts(config_for(path))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, TEXTS, row_group_size=5, compression="none", use_dictionary=False)
    flip(path, path.read_bytes().index(b"Row number 7"))
    with pytest.raises(UserError, match=r"a\.parquet: row 2 of row group 1 .* 0xad .*\.$"):
        read_texts(config_for(path))


@pytest.mark.parametrize(("allowed", "fails"), [(0.05, True), (0.1, False)])
def test_null_is_skipped_up_to_a_share_and_named_by_its_row(tmp_path: Path, allowed: float, fails: bool) -> None:
    write(tmp_path / "a.parquet", [*TEXTS[:7], None, *TEXTS[8:]], row_group_size=5)
    config = replace(config_for(tmp_path / "a.parquet"), max_rows_without_text=allowed)
    if not fails:
        assert read_texts(config) == [*TEXTS[:7], *TEXTS[8:]]
        return
    with pytest.raises(
        UserError, match=r"a\.parquet: row 2 of row group 1 has no text .* 1 of 10 rows have none, .* 0\.05\.$"
    ):
        read_texts(config)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("body", "has 0 columns 'body', .* its columns are id, text, nested"),
        ("id", "has int64 in the column 'id'"),
        ("nested", "has struct<x: string> in the column 'nested'"),
        ("nested.x", "has 0 columns 'nested.x'"),
    ],
)
def test_column_without_text_is_named_before_anything_is_read(tmp_path: Path, column: str, words: str) -> None:
    table = pyarrow.table({"id": [1], "text": ["One."], "nested": [{"x": "Two."}]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"^files: .*a\.parquet {words}.*\.$"):
        work_units(config_for(tmp_path / "a.parquet", column=column))


def test_packed_parquet_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", TEXTS)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(UserError, match=r"^files: .*a\.parquet\.gz must not be compressed once more, .*unpack it\.$"):
        work_units(config_for(tmp_path / "a.parquet.gz"))


def test_memory_holds_a_few_rows_and_not_a_row_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, 40_000_000, dtype=np.uint8).tobytes().decode()
    texts = [letters[first : first + 4000] for first in range(0, len(letters), 4000)]
    write(tmp_path / "a.parquet", texts, row_group_size=len(texts), use_dictionary=False)
    del letters, texts
    (unit,) = work_units(config_for(tmp_path / "a.parquet"))
    pyarrow.default_memory_pool().release_unused()
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    largest, size = 0, 0
    for text in reading.source_of(unit.source).read(unit.fragments[0], unit.source, reading.Counts()):
        largest, size = max(largest, pyarrow.total_allocated_bytes() - before), size + len(text)
    assert size == 40_000_000 and largest < 8_000_000 and tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_text_column_is_another_name_of_the_option(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [f"This is document number {number}." for number in range(200)], "body")
    options = ["--source", "text", "--files", f'["{tmp_path}/a.parquet"]', "--vocab_size", "200", "--lengths", "[16]"]
    main([*options, "--text-column=body", "--out", str(tmp_path / "corpus"), "--workers", "2"])
    assert Corpus.open(tmp_path / "corpus").manifest["config"]["text_field"] == "body"
