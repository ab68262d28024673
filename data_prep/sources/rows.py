"""Rows with a text each, of which a few may have none."""

from collections.abc import Callable, Iterable, Iterator

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import NO_TEXT, Counts
from earlybert.data_prep.sources.source import SourceConfig

# When none of the first so many rows has text, text_field is wrong, and nobody should wait for the rest.
FIRST_ROWS = 1000


def row_texts(rows: Iterable[tuple[object, Callable[[], str]]], config: SourceConfig, counts: Counts) -> Iterator[str]:
    """The texts of rows; those without are counted.

    Args:
        rows: The value of each row's `text_field`, and what names the row.
        config: The source.
        counts: Is told of rows without text.

    Raises:
        UserError: None of the first rows has text.
    """
    for value, place in rows:
        counts.rows += 1
        if isinstance(value, str):
            yield value
            continue
        counts.skip_row(place)
        if counts.rules[NO_TEXT].dropped == counts.rows == FIRST_ROWS:
            check_rows(config, counts)


def check_rows(config: SourceConfig, counts: Counts) -> None:
    """Raises UserError where more rows are without text than the configuration allows."""
    empty = counts.rules.get(NO_TEXT)
    if empty and empty.dropped > config.max_rows_without_text * counts.rows:
        raise UserError(
            f"{empty.examples[0]} has no text in the field {config.text_field!r} (see text_field); {empty.dropped:,} "
            f"of {counts.rows:,} rows have none, but max_rows_without_text is {config.max_rows_without_text}."
        )
