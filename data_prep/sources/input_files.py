"""Text files: found, cut into fragments that are read apart, unpacked, and named where they cannot be read."""

import glob
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from backports import zstd

from earlybert.core.errors import UserError
from earlybert.core.paths import did_you_mean
from earlybert.data_prep.sources.remote import find_remote, is_url
from earlybert.data_prep.sources.source import Fragment, InputPath
from earlybert.data_prep.sources.streams import OPENERS

UNPACKING_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
# Text takes about so many times the room of its packed form.
UNPACKED = 4
STRETCH = 1 << 20


def find_files(names: Iterable[str], endings: tuple[str, ...]) -> list[InputPath]:
    """The files that are named, sorted, each once.

    Args:
        names: Files, folders or glob patterns, on disk or behind URLs. Of a folder all files with one of the endings
            are taken, however deep.
        endings: What a name may end in, before the ending of its compression.

    Raises:
        UserError: Nothing is there, a file has another ending, or a place cannot be looked at.
    """
    files: set[InputPath] = set()
    for name in names:
        matches = files_of(name, lambda file: content_ending(file) in endings)
        if not matches:
            if Path(name).is_dir():
                raise UserError(f"files: no file in the folder {name} ends in {' or '.join(endings)}.")
            hint = "" if is_url(name) or glob.has_magic(name) else did_you_mean(Path(name))
            place = "" if is_url(name) or Path(name).is_absolute() else f" in the current folder, {Path.cwd()}"
            raise UserError(f"files: no file matches {name}{hint or f'{place}.'}")
        files.update(matches)
    for file in files:
        if content_ending(file) not in endings:
            packed = ", ".join(OPENERS)
            raise UserError(f"files: {file} must end in {' or '.join(endings)}, which {packed} may follow.")
    return sorted(files)


def files_of(name: str, in_folder: Callable[[PurePath], bool] = lambda _: True) -> list[InputPath]:
    """What is there under a name, whatever characters it has, or under a pattern; of a folder those that are wanted."""
    if is_url(name):
        return [*find_remote(name, in_folder)]
    path = Path(name)
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file() and in_folder(file)]
    if path.exists():
        return [path]
    # Brackets in the folders that are there are no pattern, nor others where no file matches them as one.
    there = next(parent for parent in path.parents if parent.is_dir())
    pattern = str(path.relative_to(there))
    for rest in (pattern, pattern.replace("[", "[[]")):
        found = [there / match for match in glob.glob(rest, root_dir=there, recursive=True)]
        if matches := [match for match in found if match.is_file()]:
            return [*matches]
    return []


def content_ending(file: PurePath) -> str:
    """The ending of a file's name without that of its compression, and without the page numbers of a dump's part."""
    ending = file.with_suffix("").suffix if file.suffix in OPENERS else file.suffix
    return re.sub(r"-p\d+p\d+$", "", ending)


def file_fragment(file: InputPath) -> Fragment:
    """A file as one fragment."""
    state = file.stat()
    size = state.st_size * UNPACKED if file.suffix in OPENERS else state.st_size
    return Fragment(file, size, modified=state.st_mtime_ns)


def file_fragments(file: InputPath) -> list[Fragment]:
    """A file as one fragment when it is packed or its server has no parts of it, otherwise cut into stretches."""
    whole = file_fragment(file)
    if file.suffix in OPENERS or not (isinstance(file, Path) or file.has_parts):
        return [whole]
    size, modified = whole.bytes, whole.modified
    starts = range(0, max(size, 1), STRETCH)
    return [Fragment(file, min(STRETCH, size - start), start, start + STRETCH, modified) for start in starts]


def open_file(file: InputPath) -> Any:
    """Open for reading bytes, unpacked where the ending says so."""
    if file.suffix not in OPENERS:
        return file.open("rb")
    return OPENERS[file.suffix](file if isinstance(file, Path) else file.open(), "rb")


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
