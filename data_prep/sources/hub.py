"""Data sets for the `datasets` library, streamed; one fragment for each of their shards."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError, one_line
from earlybert.core.paths import did_you_mean
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources.rows import row_texts
from earlybert.data_prep.sources.source import Fragment, Source, SourceConfig

# What a shard holds cannot be known before it is read; published ones are cut to about half a gigabyte at most.
SHARD_BYTES = 1 << 26
# What the library calls files whose ending is not their kind's name.
FILES = {".jsonl": "json", ".tsv": "csv", ".txt": "text"}
# Files that tell a folder written by `save_to_disk`.
SAVED = ("state.json", "dataset_dict.json")


class Hub(Source):
    """A row is a document."""

    name = "hub"
    meaning = (
        "a data set of the Hugging Face hub, or a local folder or file that the datasets library reads, what "
        "save_to_disk wrote included (a document a row)"
    )
    needs = "hub_name"

    def fragments(self, config: SourceConfig) -> list[Fragment]:
        """The shards (data files) of a data set."""
        local = Path(config.hub_name or "")
        modified = max((path.stat().st_mtime_ns for path in [*local.rglob("*"), local] if path.exists()), default=0)
        return [Fragment(None, SHARD_BYTES, shard, modified=modified) for shard in range(_load(config).num_shards)]

    def read(self, fragment: Fragment, config: SourceConfig, counts: Counts) -> Iterator[str]:
        """The rows of one shard."""
        return row_texts(_rows(fragment, config), config, counts)


def _rows(fragment: Fragment, config: SourceConfig) -> Iterator[tuple[object, Callable[[], str]]]:
    data = _load(config)
    rows = iter(data.shard(data.num_shards, fragment.start))
    for number in count():
        named = f"hub_name: row {number} in part {fragment.start} of {config.hub_name}"
        try:
            row = next(rows, None)
        # What can go wrong here is the library's, the network's and the data set's: no list would be complete.
        except Exception as error:
            raise UserError(f"{named} cannot be read ({one_line(error)}).") from error
        if row is None:
            return
        yield row.get(config.text_field), partial("{} with the fields {}".format, named, ", ".join(row))


def _load(config: SourceConfig) -> Any:
    """The data set, streamed: of the hub, with the token that `hf auth login` or HF_TOKEN gives, or of this disk."""
    import datasets

    name = config.hub_name or ""
    try:
        if Path(name).is_file():
            ending = Path(name).suffix
            options = {"sep": "\t"} if ending == ".tsv" else {}
            kind = FILES.get(ending, ending[1:])
            return datasets.load_dataset(kind, data_files=name, split=config.hub_split, streaming=True, **options)
        if any((Path(name) / mark).is_file() for mark in SAVED):
            return _load_saved(name, config.hub_split)
        return datasets.load_dataset(name, config.hub_config, split=config.hub_split, streaming=True)
    except Exception as error:
        message = f"hub_name: the data set {name} cannot be loaded ({one_line(error)}){did_you_mean(Path(name))}"
        raise UserError(message) from error


def _load_saved(folder: str, split: str) -> Any:
    """What `Dataset.save_to_disk` wrote, or a split of what `DatasetDict.save_to_disk` wrote, a shard a file."""
    import datasets

    saved = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"it has no split {split!r}, but {', '.join(saved)}; see hub_split")
        saved = saved[split]
    return saved.to_iterable_dataset(num_shards=max(1, min(len(saved.cache_files), len(saved))))
