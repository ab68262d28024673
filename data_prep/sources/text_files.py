"""Files of one's own: plain text, and JSON with a document a line."""

import json
from collections.abc import Iterator

from earlybert.core.errors import UserError
from earlybert.data_prep.sources.config import SourceConfig
from earlybert.data_prep.sources.input_files import (
    Piece,
    content_ending,
    file_pieces,
    find_files,
    line_place,
    read_lines,
)


def text_pieces(source: SourceConfig) -> list[Piece]:
    """All files of the source, sorted, in pieces."""
    files = find_files(source.files, (".txt", ".jsonl"))
    return [piece for file in files for piece in file_pieces(file)]


def read_text(piece: Piece, source: SourceConfig) -> Iterator[str]:
    """The documents of one piece.

    `.txt`: paragraphs are lines and documents end at blank lines; `.jsonl`: a document a line.

    Raises:
        UserError: The file or one of its lines cannot be read; the message says which.
    """
    assert piece.path
    if content_ending(piece.path) == ".jsonl":
        yield from _json_documents(piece, source.text_field)
    else:
        yield from _plain_documents(piece)


def _plain_documents(piece: Piece) -> Iterator[str]:
    """A document belongs to the piece in which the blank line before it begins, or the file."""
    paragraphs: list[str] = []
    inside = piece.start == 0
    for offset, line in read_lines(piece):
        if not line.strip():
            if paragraphs:
                yield "\n".join(paragraphs)
                paragraphs = []
            if piece.end is not None and offset >= piece.end:
                return
            inside = True
        elif inside:
            paragraphs.append(line)
        elif piece.end is not None and offset >= piece.end:
            return
    if paragraphs:
        yield "\n".join(paragraphs)


def _json_documents(piece: Piece, text_field: str) -> Iterator[str]:
    for offset, line in read_lines(piece):
        if piece.end is not None and offset >= piece.end:
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            place = line_place(piece, offset)
            raise UserError(f"{place} is not JSON ({error.msg} at column {error.colno}).") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{line_place(piece, offset)} is JSON that cannot be read ({error}).") from None
        if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
            place = line_place(piece, offset)
            raise UserError(f"{place} has no text in the field {text_field!r} (see text_field).")
        yield row[text_field]
