"""A prepared corpus: what is in it, and its samples."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from earlybert.core.errors import UserError
from earlybert.core.files import whole_folder
from earlybert.data_prep.samples.manifest import NAME, damaged_files, read_manifest
from earlybert.data_prep.samples.shards import shard_folder
from earlybert.data_prep.tokens.tokenizer import SpecialTokens, continues_word, load_tokenizer

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Sample:
    """One unmasked sample.

    Attributes:
        input_ids: int32 [tokens], `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.
        first_length: Tokens of `[CLS] A [SEP]`; the rest is the second segment.
        next_sentence_label: 1 when the second segment is random or, for `sop`, stands before the first in the text; 0
            when it is the next or there is none.
    """

    input_ids: np.ndarray
    first_length: int
    next_sentence_label: int


@dataclass(frozen=True)
class SampleRows(Sequence[Sample]):
    """Some samples, column by column; each of them by its number.

    Attributes:
        input_ids: int32 [tokens], the tokens of all samples one after the other.
        bounds: int64 [samples + 1], where each sample begins and the last ends.
        first_lengths: int64 [samples], tokens of `[CLS] A [SEP]`.
        next_sentence_labels: int64 [samples].
    """

    input_ids: np.ndarray
    bounds: np.ndarray
    first_lengths: np.ndarray
    next_sentence_labels: np.ndarray

    def __len__(self) -> int:
        return len(self.first_lengths)

    @overload
    def __getitem__(self, number: int) -> Sample: ...

    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...

    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        row = range(len(self))[number]
        tokens = self.input_ids[self.bounds[row] : self.bounds[row + 1]]
        return Sample(tokens, int(self.first_lengths[row]), int(self.next_sentence_labels[row]))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [samples], tokens of each sample."""
        return np.diff(self.bounds)


class Samples:
    """The samples of one split and length, read memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Open all shards of a folder."""
        dataset, _ = _open_shards(folder, "shard")
        self._shards = [_Shard.of(batch) for batch in dataset.data.to_batches()]
        self._bounds = np.cumsum([0, *(len(shard.first_lengths) for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def rows(self, indices: Sequence[int]) -> SampleRows:
        """The samples at `indices`, in that order.

        Raises:
            IndexError: An index is out of range.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if np.any((wanted < 0) | (wanted >= len(self))):
            raise IndexError(f"there are {len(self)} samples, no number {wanted.min()} to {wanted.max()}")
        shard_of = np.searchsorted(self._bounds, wanted, side="right") - 1
        starts, lengths, first_lengths, labels = np.zeros((4, len(wanted)), dtype=np.int64)
        parts = [(self._shards[number], shard_of == number) for number in np.unique(shard_of)]
        for shard, inside in parts:
            rows = (wanted - self._bounds[shard_of])[inside]
            starts[inside], lengths[inside] = shard.bounds[rows], shard.bounds[rows + 1] - shard.bounds[rows]
            first_lengths[inside], labels[inside] = shard.first_lengths[rows], shard.next_sentence_labels[rows]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(bounds[-1]) + (starts - bounds[:-1]).repeat(lengths)
        tokens = np.zeros(bounds[-1], dtype=np.int32)
        for shard, inside in parts:
            own = inside.repeat(lengths)
            tokens[own] = shard.tokens[places[own]]
        return SampleRows(tokens, bounds, first_lengths, labels)

    def sizes(self) -> Iterator[np.ndarray]:
        """Tokens of all samples, special tokens included, in order: int64 arrays of a shard each."""
        for shard in self._shards:
            yield np.diff(shard.bounds).astype(np.int64)


class _Shard(NamedTuple):
    """The columns of a shard, mapped: tokens of all samples, their bounds, and a number for each sample."""

    tokens: np.ndarray
    bounds: np.ndarray
    first_lengths: np.ndarray
    next_sentence_labels: np.ndarray

    @staticmethod
    def of(batch: "pyarrow.RecordBatch") -> "_Shard":
        ids = batch.column("input_ids")
        others = (batch.column(name).to_numpy() for name in ("first_length", "next_sentence_label"))
        return _Shard(ids.values.to_numpy(), ids.offsets.to_numpy(), *others)


class PackedRows:
    """Which samples of one split and length share a row of the full length, read memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Open the plans of all shards of a folder."""
        self._dataset, self._row_bounds = _open_shards(folder, "packing")
        _, self._sample_bounds = _open_shards(folder, "shard")

    def __len__(self) -> int:
        return len(self._dataset)

    def rows(self, indices: Sequence[int]) -> list[np.ndarray]:
        """For each row at `indices` the indices of its samples: int64 [samples], neighbours in the stored order.

        Raises:
            IndexError: An index is out of range.
        """
        rows = self._dataset[list(indices)].combine_chunks()["samples"].combine_chunks()
        members = rows.values.to_numpy().astype(np.int64)
        firsts = self._sample_bounds[np.searchsorted(self._row_bounds, indices, side="right") - 1]
        bounds = pairwise(rows.offsets.to_numpy().tolist())
        return [members[begin:end] + first for (begin, end), first in zip(bounds, firsts, strict=True)]


def _open_shards(folder: Path, name: str) -> tuple["Dataset", np.ndarray]:
    """All files of one name as one data set, and int64 [files + 1] with the bounds of each file's rows in it."""
    from datasets import Dataset, concatenate_datasets

    shards = [Dataset.from_file(str(path)) for path in sorted(folder.glob(f"{name}-*.arrow"))]
    return concatenate_datasets(shards).with_format("arrow"), np.cumsum([0, *map(len, shards)])


def _count_stored(folder: Path, name: str) -> int:
    """Rows of all files of one name, without the library that reads them."""
    import pyarrow

    count = 0
    for path in folder.glob(f"{name}-*.arrow"):
        with pyarrow.memory_map(str(path)) as file:
            count += sum(batch.num_rows for batch in pyarrow.ipc.open_stream(file))
    return count


class Corpus:
    """A corpus directory made by `prepare`.

    Attributes:
        directory: Where it lies.
        manifest: The content of `manifest.json`.
        fingerprint: SHA-256 of the manifest, which holds the checksum of every file.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], fingerprint: str) -> None:
        """Hold what `open` has checked."""
        self.directory = directory
        self.manifest = manifest
        self.fingerprint = fingerprint

    @classmethod
    def open(cls, directory: Path, verify_checksums: bool = False) -> "Corpus":
        """Open a corpus; the manifest and all files' sizes are checked, their SHA-256 when asked.

        Raises:
            UserError: It is incomplete, damaged or of another format.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if verify_checksums:
            for name, damaged in damaged_files(directory, manifest):
                if damaged:
                    raise UserError(
                        f"{directory / name} is damaged: its SHA-256 is not the manifest's; prepare the corpus again."
                    )
        return cls(directory, manifest, hashlib.sha256((directory / NAME).read_bytes()).hexdigest())

    def keep(self, directory: Path) -> None:
        """Copy everything but the samples: what a run needs of its corpus when that is gone. Nothing if it is there."""
        if not directory.exists():
            with whole_folder(directory) as temporary:
                shutil.copy2(self.directory / NAME, temporary / NAME)
                shutil.copytree(self.directory / "tokenizer", temporary / "tokenizer")

    @classmethod
    def open_kept(cls, directory: Path) -> "Corpus":
        """A corpus without samples, made by `keep`; its fingerprint is the whole one's.

        Raises:
            UserError: It is damaged or of another format.
        """
        manifest = read_manifest(directory, check_files=False)
        return cls(directory, manifest, hashlib.sha256((directory / NAME).read_bytes()).hexdigest())

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer, loaded when first asked for."""
        return load_tokenizer(str(self.directory / "tokenizer"), lowercase=self.manifest["config"]["lowercase"])

    @property
    def vocab_size(self) -> int:
        """The highest token id plus one."""
        return self.manifest["vocabulary"]["size"]

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The ids of the special tokens."""
        return SpecialTokens(**self.manifest["vocabulary"]["special_tokens"])

    @cached_property
    def continues_word(self) -> np.ndarray:
        """For whole-word masking: bool [vocab_size], whether a token goes on with the word of the one before it.

        Raises:
            UserError: The tokenizer does not show where words begin.
        """
        return continues_word(self.tokenizer)

    @property
    def lengths(self) -> list[int]:
        """The sequence lengths that were prepared."""
        return self.manifest["config"]["lengths"]

    @property
    def objective(self) -> str:
        """What its samples are: "nsp" or "sop" pairs with a label, or "full-sentences"."""
        return self.manifest["config"]["objective"]

    def samples(self, split: str, length: int) -> Samples:
        """The samples of a split (`train` or `validation`) at one of the prepared lengths.

        Raises:
            UserError: The corpus has no such split or length.
        """
        return Samples(self._folder(split, length))

    def stored_samples(self, split: str, length: int) -> int:
        """How many samples there are in the shards, counted without loading the library that reads them.

        Raises:
            UserError: The corpus has no such split or length.
        """
        return _count_stored(self._folder(split, length), "shard")

    def stored_rows(self, split: str, length: int) -> int:
        """How many rows these samples share, counted in the same way.

        Raises:
            UserError: The corpus has no such split or length, or was prepared without packing.
        """
        return _count_stored(self._packed_folder(split, length), "packing")

    def packed_rows(self, split: str, length: int) -> PackedRows:
        """Which of these samples share a row.

        Raises:
            UserError: The corpus has no such split or length, or was prepared without packing.
        """
        return PackedRows(self._packed_folder(split, length))

    def _packed_folder(self, split: str, length: int) -> Path:
        if not self.manifest["config"]["packing"]:
            raise UserError(f"{self.directory} was prepared without packing; prepare it with --packing true.")
        return self._folder(split, length)

    def _folder(self, split: str, length: int) -> Path:
        splits = list(self.manifest["counts"])
        if split not in splits:
            raise UserError(f"{self.directory} has no split {split!r}, but {' and '.join(splits)}.")
        if length not in self.lengths:
            prepared = ", ".join(map(str, self.lengths))
            raise UserError(f"{self.directory} has no samples of length {length}; it was prepared for {prepared}.")
        return shard_folder(self.directory, split, length)
