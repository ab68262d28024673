"""Parquet files, read by row groups: a large file by many workers, each with a few rows in memory."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from earlybert.core.errors import UserError, one_line
from earlybert.data_prep.sources.source import Fragment, InputPath
from earlybert.data_prep.sources.streams import OPENERS

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

PARQUET = ".parquet"
ROWS_PER_BATCH = 64
# What is read of a column at a time; without a limit it would be the row group.
READ_BYTES = 1 << 20


def parquet_fragments(file: InputPath, column: str) -> list[Fragment]:
    """A fragment for each row group; row groups are what `start` and `end` count.

    Raises:
        UserError: It is no whole Parquet file, or has no text in the column.
    """
    if file.suffix in OPENERS:
        raise UserError(f"files: {file} must not be compressed once more, as Parquet is inside; unpack it.")
    modified = file.stat().st_mtime_ns
    with _open(file, column) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        leaves = [parquet.metadata.schema.column(leaf).path for leaf in range(parquet.metadata.num_columns)]
    sizes = [group.column(leaves.index(column)).total_uncompressed_size for group in groups]
    # A file without rows has no text, but it is there.
    return [Fragment(file, size, group, group + 1, modified) for group, size in enumerate(sizes)] or [
        Fragment(file, 0, 0, 0, modified)
    ]


def read_parquet(fragment: Fragment, column: str) -> Iterator[tuple[object, Callable[[], str]]]:
    """The text of each row, None where the column is null, and what names the row: its row group and place, from 0.

    Raises:
        UserError: The file cannot be read.
    """
    assert fragment.path and fragment.end is not None
    with _open(fragment.path, column) as parquet:
        for group in range(fragment.start, fragment.end):
            row = 0
            try:
                for batch in parquet.iter_batches(
                    ROWS_PER_BATCH, row_groups=[group], columns=[column], use_threads=False
                ):
                    for value in batch.column(0):
                        yield value.as_py(), partial(_place, fragment, group, row)
                        row += 1
            except UserError:
                raise
            # Both pyarrow's ArrowInvalid and text that is no UTF-8 are ValueErrors.
            except (OSError, ValueError) as error:
                message = f"{_place(fragment, group, row)} has no text that can be read"
                raise UserError(f"{message} ({one_line(error)}).") from None


def _place(fragment: Fragment, group: int, row: int) -> str:
    return f"{fragment.path}: row {row} of row group {group}"


def _open(file: InputPath, column: str) -> "ParquetFile":
    """Open a file that has text in the column."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if not (isinstance(file, Path) or file.has_parts):
        raise UserError(f"files: {file} lies on a server that has no parts of files, which Parquet needs; download it.")
    try:
        opened = file if isinstance(file, Path) else file.open()
        parquet = ParquetFile(opened, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"files: {file} cannot be read as Parquet ({one_line(error)}).") from None
    schema = parquet.schema_arrow
    columns = schema.get_all_field_indices(column)
    if len(columns) != 1:
        raise UserError(
            f"files: {file} has {len(columns)} columns {column!r}, but must have one (see text_field); "
            f"its columns are {', '.join(schema.names)}."
        )
    stored = schema.field(columns[0]).type
    values = stored.value_type if pyarrow.types.is_dictionary(stored) else stored
    if not (
        pyarrow.types.is_string(values) or pyarrow.types.is_large_string(values) or pyarrow.types.is_string_view(values)
    ):
        raise UserError(f"files: {file} has {one_line(stored)} in the column {column!r}, but it must be text.")
    return parquet
