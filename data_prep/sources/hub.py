"""Data sets for the `datasets` library, streamed; one fragment for each of their shards."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources.source import Fragment, Source, SourceConfig

# What a shard holds cannot be known before it is read; published ones are cut to about half a gigabyte at most.
SHARD_BYTES = 1 << 26


class Hub(Source):
    """A row is a document."""

    name = "hub"
    meaning = "a data set for the datasets library, or a local folder with one (a document a row)"
    needs = "hub_name"

    def fragments(self, config: SourceConfig) -> list[Fragment]:
        """The shards (data files) of a data set."""
        local = Path(config.hub_name or "")
        modified = max((path.stat().st_mtime_ns for path in local.rglob("*")), default=0) if local.is_dir() else 0
        return [Fragment(None, SHARD_BYTES, shard, modified=modified) for shard in range(_load(config).num_shards)]

    def read(self, fragment: Fragment, config: SourceConfig, counts: Counts) -> Iterator[str]:
        """The rows of one shard."""
        data = _load(config)
        rows = iter(data.shard(data.num_shards, fragment.start))
        for number in count():
            named = f"hub_name: row {number} in part {fragment.start} of {config.hub_name}"
            try:
                row = next(rows, None)
            # What can go wrong here is the library's, the network's and the data set's: no list would be complete.
            except Exception as error:
                raise UserError(f"{named} cannot be read ({_one_line(error)}).") from error
            if row is None:
                return
            text = row.get(config.text_field)
            if not isinstance(text, str):
                raise UserError(
                    f"{named} has no text in the field {config.text_field!r}; "
                    f"its fields are {', '.join(row)} (see text_field)."
                )
            yield text


def _load(config: SourceConfig) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            config.hub_name, config.hub_config, split=config.hub_split, streaming=True, token=False
        )
    except Exception as error:
        message = f"hub_name: the data set {config.hub_name} cannot be loaded ({_one_line(error)})."
        raise UserError(message) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
