"""Text files: found, cut into pieces that are read apart, unpacked, and named where they cannot be read."""

import glob
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backports import zstd

from earlybert.core.errors import UserError
from earlybert.data_prep.sources.streams import OPENERS

UNPACKING_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
# Text takes about so many times the room of its packed form.
UNPACKED = 4
STRETCH = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A file or a stretch of it, or a shard of a data set.

    Attributes:
        path: The file; None for sources without files.
        bytes: About how much text it holds, unpacked.
        start: Where the stretch begins: a byte of the file (of the packed file for multistream dumps), or the number
            of a data set's shard.
        end: The byte after its last; None for all that follows.
        modified: When the file last changed, in nanoseconds since 1970: what was read of another state of the file
            shall not be taken for this piece.
    """

    path: Path | None
    bytes: int
    start: int = 0
    end: int | None = None
    modified: int = 0


def find_files(patterns: Iterable[str], endings: tuple[str, ...]) -> list[Path]:
    """The files that match, sorted, each once.

    Args:
        patterns: File names or glob patterns.
        endings: What a name may end in, before the ending of its compression.

    Raises:
        UserError: A pattern matches no file, or a file has another ending.
    """
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not matches:
            raise UserError(f"files: no file matches {pattern}.")
        found.update(matches)
    for file in found:
        if content_ending(file) not in endings:
            packed = ", ".join(OPENERS)
            raise UserError(f"files: {file} must end in {' or '.join(endings)}, which {packed} may follow.")
    return sorted(found)


def content_ending(file: Path) -> str:
    """The ending of a file's name without that of its compression, and without the page numbers of a dump's part."""
    ending = file.with_suffix("").suffix if file.suffix in OPENERS else file.suffix
    return re.sub(r"-p\d+p\d+$", "", ending)


def file_pieces(file: Path) -> list[Piece]:
    """A file as one piece when it is packed, otherwise cut into stretches."""
    size, modified = file.stat().st_size, file.stat().st_mtime_ns
    if file.suffix in OPENERS:
        return [Piece(file, size * UNPACKED, modified=modified)]
    starts = range(0, max(size, 1), STRETCH)
    return [Piece(file, min(STRETCH, size - start), start, start + STRETCH, modified) for start in starts]


def open_file(file: Path) -> Any:
    """Open for reading bytes, unpacked where the ending says so."""
    return OPENERS.get(file.suffix, open)(file, "rb")


def read_lines(piece: Piece) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file from the first that begins in the piece to the end of the file.

    Yields:
        The offset at which the line begins in the unpacked file, and the line without its end. Where the piece ends is
        for the caller to decide: a document may go on beyond.

    Raises:
        UserError: The file cannot be read or is not UTF-8; the message names the line.
    """
    assert piece.path
    offset = piece.start
    try:
        with open_file(piece.path) as stream:
            if piece.start:
                stream.seek(piece.start - 1)
                # What began before belongs to the piece before.
                offset += len(stream.readline()) - 1
            for line in stream:
                yield offset, line.decode("utf-8" if offset else "utf-8-sig").rstrip("\r\n")
                offset += len(line)
    except UnicodeDecodeError as error:
        byte, position = error.object[error.start], offset + error.start
        place = line_place(piece, offset)
        raise UserError(f"{place}: the byte 0x{byte:02x} at offset {position} is not UTF-8.") from None
    except UNPACKING_ERRORS as error:
        raise UserError(f"{piece.path} cannot be read after byte {offset} of its text ({error}).") from error


def line_place(piece: Piece, offset: int) -> str:
    """`FILE:LINE` for the line that begins at an offset of the unpacked file; counts the lines before."""
    assert piece.path
    number = 1
    with open_file(piece.path) as stream:
        for line in stream:
            offset -= len(line)
            if offset < 0:
                break
            number += 1
    return f"{piece.path}:{number}"
