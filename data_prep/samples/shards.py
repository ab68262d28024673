"""Samples on disk: Arrow files that `datasets` reads memory-mapped, and the external shuffle that fills them.

Every block of documents is cut into samples, and each sample drawn into one of the shards; what a block gives is
written once, sorted by shard (a *spill*). Then every shard is collected from all spills and shuffled in memory. So all
orders of all samples are equally likely, files are written and read from front to back, and memory holds a block or a
shard.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earlybert.core.files import read_json, whole_file, write_json
from earlybert.core.randomness import generator
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.samples.packing import pack_shard
from earlybert.data_prep.samples.samples import plan_samples, with_special_tokens
from earlybert.data_prep.tokens.text import TokenisedText
from earlybert.data_prep.tokens.tokenizer import SpecialTokens
from earlybert.data_prep.workers import Workers

if TYPE_CHECKING:
    import pyarrow

TOKENS_PER_SHARD = 1 << 24
USAGE = b"usage"


@dataclass(frozen=True)
class SampleSet:
    """The samples of one split and length: what their making depends on.

    Attributes:
        split: `train` or `validation`.
        length: Tokens of the longest sample.
        shards: Number of shards.
        text: Folder of the split's text.
        folder: Folder for the shards.
        work: Folder for spills and notes.
        dtype: Of the tokens.
        special: Ids of the special tokens.
        config: The configuration.
    """

    split: str
    length: int
    shards: int
    text: Path
    folder: Path
    work: Path
    dtype: str
    special: SpecialTokens
    config: CorpusConfig

    def spill(self, copy: int, block: int) -> Path:
        return self.work / f"spill-{copy:03d}-{block:06d}.arrow"

    def shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.arrow"

    def packing(self, number: int) -> Path:
        return self.folder / f"packing-{number:05d}.arrow"

    def note(self, number: int) -> Path:
        """Says what is in a shard; written when it is complete."""
        return self.work / f"shard-{number:05d}.json"

    @property
    def summary(self) -> Path:
        """Says what is in all shards; written last."""
        return self.work / "summary.json"


def make_samples(samples: SampleSet, workers: Workers) -> dict[str, Any]:
    """Make all shards of one split and length.

    Returns:
        What they hold: samples, tokens of the samples, where these come from, rows of the packing.
    """
    if samples.summary.is_file():
        return read_json(samples.summary)
    text = TokenisedText.open(samples.text, samples.dtype)
    numbers = range(samples.shards)
    jobs = [
        (samples, copy, block, first, last)
        for block, (first, last) in enumerate(text.blocks())
        for copy in range(int(text.copies[first:last].max()))
    ]
    name = f"{samples.split} samples of length {samples.length}"
    # Spills may be gone already when all shards are there.
    if not all(samples.note(number).is_file() for number in numbers):
        workers.run(write_spill, jobs, f"Making {name}", [last - first for *_, first, last in jobs])
        spills = [samples.spill(copy, block) for _, copy, block, *_ in jobs]
        write_json(samples.work / "usage.json", _sums([_usage(spill) for spill in spills]))
        workers.run(write_shard, [(samples, number, spills) for number in numbers], f"Shuffling {name}")
    summary = _sums([read_json(samples.note(number)) for number in numbers])
    summary |= read_json(samples.work / "usage.json")
    write_json(samples.summary, summary)
    for _, copy, block, *_ in jobs:
        samples.spill(copy, block).unlink(missing_ok=True)
    return summary


def _sums(tables: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(table[name] for table in tables) for name in tables[0]}


def shard_folder(directory: Path, split: str, length: int) -> Path:
    """Where the shards of one split and length lie."""
    return directory / split / f"length-{length}"


def write_spill(samples: SampleSet, copy: int, block: int, first: int, last: int) -> None:
    """Cut the documents from `first` to before `last` that enter a pass more than `copy` times.

    The file has a record batch for each shard and, in the metadata, how many tokens went where.
    """
    import pyarrow

    config, path = samples.config, samples.spill(copy, block)
    if path.is_file():
        return
    text = TokenisedText.open(samples.text, samples.dtype)
    plan = plan_samples(
        text,
        first + np.flatnonzero(text.copies[first:last] > copy),
        length=samples.length,
        objective=config.objective,
        short_sequence_probability=config.short_sequence_probability,
        rng=generator(config.seed, f"segments {samples.split}", samples.length, copy, block),
    )
    rng = generator(config.seed, f"shards {samples.split}", samples.length, copy, block)
    shard_of = rng.integers(samples.shards, size=len(plan.slices))
    order = np.argsort(shard_of, kind="stable")
    starts = np.searchsorted(shard_of[order], np.arange(samples.shards + 1)).tolist()
    slices = plan.slices[order]
    tokens, bounds, first_length = with_special_tokens(text, slices, cls=samples.special.cls, sep=samples.special.sep)
    columns = [
        pyarrow.ListArray.from_arrays(bounds.astype(np.int32), tokens),
        pyarrow.array(first_length),
        pyarrow.array(slices[:, 4].astype(np.int8)),
    ]
    schema = _schema(samples.dtype).with_metadata({USAGE: json.dumps(plan.usage(config.objective))})
    batch = pyarrow.record_batch(columns, schema=schema)
    with whole_file(path) as temporary, pyarrow.ipc.new_file(str(temporary), schema) as writer:
        for start, end in pairwise(starts):
            writer.write_batch(batch.slice(start, end - start))


def _usage(spill: Path) -> dict[str, int]:
    import pyarrow

    with pyarrow.memory_map(str(spill)) as file:
        return json.loads(pyarrow.ipc.open_file(file).schema.metadata[USAGE])


def write_shard(samples: SampleSet, number: int, spills: list[Path]) -> None:
    """Collect one shard from all spills, shuffle it, and plan its packing where that is wanted.

    Columns: `input_ids` (list of uint16 or uint32, special tokens included), `first_length` (int32, tokens of
    `[CLS] A [SEP]`) and `next_sentence_label` (int8; 1: the second segment is random or, for `sop`, swapped with the
    first; 0 also when there is none). A packing has one column, `samples` (list of int32, their places in the shard).
    """
    import pyarrow

    if samples.note(number).is_file():
        return
    batches = [pyarrow.ipc.open_file(pyarrow.memory_map(str(spill))).get_batch(number) for spill in spills]
    table = pyarrow.Table.from_batches(batches).replace_schema_metadata().combine_chunks()
    rng = generator(samples.config.seed, f"shuffle {samples.split}", samples.length, number)
    table = table.take(rng.permutation(len(table))).combine_chunks()
    _write_table(samples.shard(number), table)
    sizes = np.diff(table["input_ids"].combine_chunks().offsets.to_numpy()).astype(np.int64)
    note = {"samples": len(sizes), "tokens": int(sizes.sum())}
    if samples.config.packing:
        members, bounds = pack_shard(sizes, samples.length)
        rows = pyarrow.ListArray.from_arrays(bounds, members)
        _write_table(samples.packing(number), pyarrow.table({"samples": rows}))
        note["packed_rows"] = len(rows)
    write_json(samples.note(number), note)


def _write_table(path: Path, table: "pyarrow.Table") -> None:
    import pyarrow

    with whole_file(path) as temporary, pyarrow.ipc.new_stream(str(temporary), table.schema) as writer:
        # One record batch a shard: finding a row costs a search over the batches.
        writer.write_table(table, max_chunksize=max(1, len(table)))


def _schema(dtype: str) -> "pyarrow.Schema":
    import pyarrow

    return pyarrow.schema(
        {
            "input_ids": pyarrow.list_(pyarrow.from_numpy_dtype(dtype)),
            "first_length": pyarrow.int32(),
            "next_sentence_label": pyarrow.int8(),
        }
    )
