"""Data sets for the `datasets` library, streamed; one piece for each of their shards."""

from collections.abc import Iterator
from typing import Any

from earlybert.core.errors import UserError
from earlybert.data_prep.sources.config import SourceConfig
from earlybert.data_prep.sources.input_files import Piece

# What a shard holds cannot be known before it is read; published ones are cut to about half a gigabyte at most.
SHARD_BYTES = 1 << 26


def hub_pieces(source: SourceConfig) -> list[Piece]:
    """The shards (data files) of a data set.

    Raises:
        UserError: It cannot be loaded.
    """
    return [Piece(None, SHARD_BYTES, shard) for shard in range(_load(source).num_shards)]


def read_hub(piece: Piece, source: SourceConfig) -> Iterator[str]:
    """The rows of one shard, a document each.

    Raises:
        UserError: It cannot be loaded, or a row has no text.
    """
    data = _load(source)
    rows = iter(data.shard(data.num_shards, piece.start))
    place = f"hub_name: row {{}} in part {piece.start} of {source.hub_name}"
    number = 0
    while True:
        try:
            row = next(rows, None)
        # What can go wrong here is the library's, the network's and the data set's: no list of types would be complete.
        except Exception as error:
            raise UserError(f"{place.format(number)} cannot be read ({_one_line(error)}).") from error
        if row is None:
            return
        text = row.get(source.text_field)
        if not isinstance(text, str):
            raise UserError(
                f"{place.format(number)} has no text in the field {source.text_field!r}; "
                f"its fields are {', '.join(row)} (see text_field)."
            )
        yield text
        number += 1


def _load(source: SourceConfig) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            source.hub_name, source.hub_config, split=source.hub_split, streaming=True, token=False
        )
    except Exception as error:
        message = f"hub_name: the data set {source.hub_name} cannot be loaded ({_one_line(error)})."
        raise UserError(message) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
