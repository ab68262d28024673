"""Sources whose text lies in files of one's own: plain text, or rows of JSON Lines and Parquet."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources.input_files import content_ending, file_fragments, find_files, line_name, read_lines
from earlybert.data_prep.sources.parquet import PARQUET, parquet_fragments, read_parquet
from earlybert.data_prep.sources.rows import row_texts
from earlybert.data_prep.sources.source import Fragment, InputPath, Source, SourceConfig

PLAIN, JSON_LINES = ".txt", ".jsonl"


class FileSource(Source):
    """Files of three endings: what is a document in plain text, and in the text of a row, is for the subclass to say.

    `.jsonl` and `.parquet` hold a row a line or record, with its text in `text_field`.
    """

    needs = "files"

    def fragments(self, config: SourceConfig) -> list[Fragment]:
        """All files of the source, sorted, in fragments."""
        return [
            fragment
            for file in find_files(config.files, (PLAIN, JSON_LINES, PARQUET))
            for fragment in self._file_fragments(file, config)
        ]

    def _file_fragments(self, file: InputPath, config: SourceConfig) -> list[Fragment]:
        if content_ending(file) == PARQUET:
            return parquet_fragments(file, config.text_field)
        return self.plain_fragments(file) if content_ending(file) == PLAIN else file_fragments(file)

    def read(self, fragment: Fragment, config: SourceConfig, counts: Counts) -> Iterator[str]:
        """The documents of one fragment."""
        assert fragment.path
        ending = content_ending(fragment.path)
        if ending == PLAIN:
            yield from self.read_plain(fragment)
        else:
            rows = read_parquet if ending == PARQUET else _read_json_lines
            for text in row_texts(rows(fragment, config.text_field), config, counts):
                yield from self.read_row(text)

    def plain_fragments(self, file: InputPath) -> list[Fragment]:
        """A plain file in fragments."""
        return file_fragments(file)

    @abstractmethod
    def read_plain(self, fragment: Fragment) -> Iterator[str]:
        """The documents of a fragment of a plain file."""

    @abstractmethod
    def read_row(self, text: str) -> Iterator[str]:
        """The documents in the text of a row."""


def _read_json_lines(fragment: Fragment, text_field: str) -> Iterator[tuple[object, Callable[[], str]]]:
    for offset, line in read_lines(fragment):
        if fragment.end is not None and offset >= fragment.end:
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            named = line_name(fragment, offset)
            raise UserError(f"{named} is not JSON ({error.msg} at column {error.colno}).") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{line_name(fragment, offset)} is JSON that cannot be read ({error}).") from None
        yield row.get(text_field) if isinstance(row, dict) else None, partial(line_name, fragment, offset)
