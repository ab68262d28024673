"""Where text comes from: each source gives documents, one paragraph a line."""

import bz2
import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from earlybert.data_prep import pydocs
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.errors import CorpusError

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def documents(config: CorpusConfig) -> Iterator[str]:
    """The documents of the configured source, up to `max_megabytes`.

    Raises:
        CorpusError: The source cannot be read, or holds no text.
    """
    if config.source == "pydocs":
        name, texts = "pydocs", pydocs.documents()
    elif config.source == "text":
        files = find_files(config.files)
        name = f"text ({', '.join(config.files)})"
        texts = (text for file in files for text in read_file(file, config.text_field))
    else:
        name, texts = f"hub ({config.hub_name})", read_hub(config)
    limit = float("inf") if config.max_megabytes is None else config.max_megabytes * 1e6
    size = 0
    for text in texts:
        # JSON can hold lone surrogates, which have no UTF-8 form.
        encoded = text.encode(errors="replace")
        if text.strip():
            yield encoded.decode()
            size += len(encoded)
        if size >= limit:
            return
    if size == 0:
        raise CorpusError(f"The source {name} holds no text, but a corpus needs some.")


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The files that match, sorted, each once.

    Raises:
        CorpusError: A pattern matches no file, or a file has another ending than `.txt` or `.jsonl` (and compression).
    """
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not matches:
            raise CorpusError(f"files: no file matches {pattern}.")
        found.update(matches)
    for file in found:
        if _content_suffix(file) not in (".txt", ".jsonl"):
            raise CorpusError(f"files: {file} must end in .txt or .jsonl, which .gz, .bz2 or .xz may follow.")
    return sorted(found)


def _content_suffix(file: Path) -> str:
    return file.with_suffix("").suffix if file.suffix in OPENERS else file.suffix


def read_file(file: Path, text_field: str) -> Iterator[str]:
    """The documents of one file.

    Args:
        file: `.txt`: paragraphs are lines and documents end at blank lines; `.jsonl`: a document a line.
        text_field: The field that holds the text in `.jsonl`.

    Raises:
        CorpusError: The file or one of its lines cannot be read; the message says which.
    """
    lines = read_lines(file)
    if _content_suffix(file) == ".jsonl":
        yield from _json_documents(file, lines, text_field)
    else:
        yield from _plain_documents(lines)


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, unpacked where the ending says so, without their ends."""
    opener = OPENERS.get(file.suffix, open)
    number, offset = 0, 0
    try:
        with opener(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                offset += len(line)
    except UnicodeDecodeError as error:
        byte, position = error.object[error.start], offset + error.start
        raise CorpusError(f"{file}:{number}: the byte 0x{byte:02x} at offset {position} is not UTF-8.") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"{file} cannot be read after line {number} ({error}).") from error


def _plain_documents(lines: Iterable[str]) -> Iterator[str]:
    paragraphs: list[str] = []
    for line in lines:
        if line.strip():
            paragraphs.append(line)
        elif paragraphs:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs)


def _json_documents(file: Path, lines: Iterable[str], text_field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{file}:{number} is not JSON ({error.msg} at column {error.colno}).") from None
        if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
            raise CorpusError(f"{file}:{number} has no text in the field {text_field!r} (see text_field).")
        yield row[text_field]


def read_hub(config: CorpusConfig) -> Iterator[str]:
    """The rows of a data set, a document each, streamed."""
    import datasets

    try:
        rows = datasets.load_dataset(
            config.hub_name, config.hub_config, split=config.hub_split, streaming=True, token=False
        )
    # What can go wrong here is the library's, the network's and the data set's: no list of types would be complete.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"hub_name: the data set {config.hub_name} cannot be loaded ({reason}).") from error
    for number, row in enumerate(rows):
        text = row.get(config.text_field)
        if not isinstance(text, str):
            raise CorpusError(
                f"hub_name: row {number} of {config.hub_name} has no text in the field {config.text_field!r}; "
                f"its fields are {', '.join(row)} (see text_field)."
            )
        yield text
