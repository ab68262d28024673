"""Text files: found, cut into fragments that are read apart, unpacked, and named where they cannot be read."""

import glob
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from backports import zstd

from earlybert.core.errors import UserError
from earlybert.data_prep.sources.source import Fragment
from earlybert.data_prep.sources.streams import OPENERS

UNPACKING_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
# Text takes about so many times the room of its packed form.
UNPACKED = 4
STRETCH = 1 << 20


def find_files(patterns: Iterable[str], endings: tuple[str, ...]) -> list[Path]:
    """The files that match, sorted, each once.

    Args:
        patterns: File names or glob patterns.
        endings: What a name may end in, before the ending of its compression.

    Raises:
        UserError: A pattern matches no file, or a file has another ending.
    """
    files: set[Path] = set()
    for pattern in patterns:
        matches = [file for file in _named(pattern) if file.is_file()]
        if not matches:
            raise UserError(f"files: no file matches {pattern}.")
        files.update(matches)
    for file in files:
        if content_ending(file) not in endings:
            packed = ", ".join(OPENERS)
            raise UserError(f"files: {file} must end in {' or '.join(endings)}, which {packed} may follow.")
    return sorted(files)


def _named(pattern: str) -> list[Path]:
    """What is there under a name, whatever characters it has, or under a pattern."""
    path = Path(pattern)
    if path.exists():
        return [path]
    folder = glob.escape(str(path.parent)) if path.parent.is_dir() else str(path.parent)
    return [Path(name) for name in glob.glob(f"{folder}/{path.name}", recursive=True)]


def content_ending(file: Path) -> str:
    """The ending of a file's name without that of its compression, and without the page numbers of a dump's part."""
    ending = file.with_suffix("").suffix if file.suffix in OPENERS else file.suffix
    return re.sub(r"-p\d+p\d+$", "", ending)


def file_fragment(file: Path) -> Fragment:
    """A file as one fragment."""
    state = file.stat()
    size = state.st_size * UNPACKED if file.suffix in OPENERS else state.st_size
    return Fragment(file, size, modified=state.st_mtime_ns)


def file_fragments(file: Path) -> list[Fragment]:
    """A file as one fragment when it is packed, otherwise cut into stretches."""
    whole = file_fragment(file)
    if file.suffix in OPENERS:
        return [whole]
    size, modified = whole.bytes, whole.modified
    starts = range(0, max(size, 1), STRETCH)
    return [Fragment(file, min(STRETCH, size - start), start, start + STRETCH, modified) for start in starts]


def open_file(file: Path) -> Any:
    """Open for reading bytes, unpacked where the ending says so."""
    return OPENERS.get(file.suffix, open)(file, "rb")


def read_lines(fragment: Fragment) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file from the first that begins in the fragment to the end of the file.

    Yields:
        The offset at which the line begins in the unpacked file, and the line without its end. Where the fragment
        ends is for the caller to decide: a document may go on beyond.

    Raises:
        UserError: The file cannot be read or is not UTF-8; the message names the line.
    """
    assert fragment.path
    offset = fragment.start
    try:
        with open_file(fragment.path) as stream:
            if fragment.start:
                stream.seek(fragment.start - 1)
                # What began before belongs to the fragment before.
                offset += len(stream.readline()) - 1
            for line in stream:
                yield offset, line.decode("utf-8" if offset else "utf-8-sig").rstrip("\r\n")
                offset += len(line)
    except UnicodeDecodeError as error:
        byte, position = error.object[error.start], offset + error.start
        named = line_name(fragment, offset)
        raise UserError(f"{named}: the byte 0x{byte:02x} at offset {position} is not UTF-8.") from None
    except UNPACKING_ERRORS as error:
        raise UserError(f"{fragment.path} cannot be read after byte {offset} of its text ({error}).") from error


def line_name(fragment: Fragment, offset: int) -> str:
    """`FILE:LINE` for the line that begins at an offset of the unpacked file; counts the lines before."""
    assert fragment.path
    number = 1
    with open_file(fragment.path) as stream:
        for line in stream:
            offset -= len(line)
            if offset < 0:
                break
            number += 1
    return f"{fragment.path}:{number}"
