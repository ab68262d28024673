"""The input is cut into work units, and each unit gives cleaned documents.

Everything here is a pure function of the configuration and the input. Duplicates over all units are found by
`cleaning/duplicates.py` from what each document carries.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.cleaning.near_duplicates import check_library, minhash_bands
from earlybert.data_prep.cleaning.rules import clean
from earlybert.data_prep.config import CorpusConfig, MixedSource
from earlybert.data_prep.job_progress import tell
from earlybert.data_prep.sources.registry import source_of
from earlybert.data_prep.sources.rows import check_rows
from earlybert.data_prep.sources.source import Fragment

# About so many units a source, so that work spreads evenly over many workers and an interruption costs little; but
# units so small that their files and processes cost more than their text would be no gain, nor units of hours.
UNITS_PER_SOURCE = 128
SMALLEST_UNIT, LARGEST_UNIT = 1 << 20, 1 << 26


@dataclass(frozen=True)
class WorkUnit:
    """A part of the input that one worker reads in one go: small files together, or a stretch of a huge one.

    Attributes:
        name: Differs from that of every other unit, and is the same in every run; for messages and progress.
        source: The source it belongs to, with its name in the mix (`unit.source.name`).
        fragments: What to read, in order.
    """

    name: str
    source: MixedSource
    fragments: tuple[Fragment, ...]

    @property
    def bytes(self) -> int:
        """About how much text it holds, unpacked, markup included."""
        return sum(fragment.bytes for fragment in self.fragments)

    @property
    def bytes_to_read(self) -> int:
        """The same, of what is read before `max_megabytes` ends it; at least 1."""
        limit = self.source.max_megabytes
        return max(1, self.bytes if limit is None else min(self.bytes, int(limit * 1e6)))

    @property
    def key(self) -> str:
        """Stands for the unit and the state of its input: unfinished work is found again by it."""
        return hashlib.sha256(repr(self).encode(errors="replace")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Document:
    """A cleaned document.

    Attributes:
        text: One paragraph a line, none empty; Unicode form NFC, white space collapsed, valid UTF-8.
        digest: 16 bytes that are the same for documents that differ only in case and white space.
        copies: How often it enters each pass over the training text (the weight of its source made a whole number);
            at least 1.
        bands: uint64 [BANDS], hashes of the MinHash bands for `near_duplicates`; None unless
            `cleaning.near_duplicates` is set.
    """

    text: str
    digest: bytes
    copies: int
    bands: np.ndarray | None


def work_units(config: CorpusConfig) -> list[WorkUnit]:
    """The input, cut into disjoint units in a fixed order.

    Names and sizes of files are looked at, the indices of multistream dumps and the footers of Parquet files; no text
    is read. The cut depends on the configuration and the input only. A source with `max_megabytes` is a single unit.

    Raises:
        UserError: A pattern matches no file, a file has an unknown ending, a data set cannot be found, or a library
            is missing.
    """
    if config.cleaning.near_duplicates:
        check_library()
    units: list[WorkUnit] = []
    for source in config.sources:
        fragments = source_of(source).fragments(source)
        groups = [fragments] if source.max_megabytes else _grouped(fragments)
        units += [WorkUnit(f"{source.name}-{number:05d}", source, tuple(group)) for number, group in enumerate(groups)]
    return units


def _grouped(fragments: list[Fragment]) -> list[list[Fragment]]:
    """Neighbours together up to the size of a unit; stretches of one file that follow one another become one."""
    target = sum(fragment.bytes for fragment in fragments) // UNITS_PER_SOURCE
    target = min(max(target, SMALLEST_UNIT), LARGEST_UNIT)
    groups: list[list[Fragment]] = []
    room = 0
    for fragment in fragments:
        if fragment.bytes > room or not groups:
            groups.append([])
            room = target
        room -= fragment.bytes
        last = groups[-1][-1] if groups[-1] else None
        if last and last.path == fragment.path and last.end == fragment.start:
            groups[-1][-1] = replace(last, bytes=last.bytes + fragment.bytes, end=fragment.end)
        else:
            groups[-1].append(fragment)
    return groups


def read_unit(unit: WorkUnit, config: CorpusConfig, counts: Counts) -> Iterator[Document]:
    """The cleaned documents of one unit, in order, and how far the reading is. A unit may well give none.

    Args:
        unit: One of `work_units(config)`.
        config: The configuration that the unit was made from.
        counts: Is told everything that is dropped.

    Raises:
        UserError: Something cannot be read; the message names the file and the line, page or offset.
    """
    limit = float("inf") if unit.source.max_megabytes is None else unit.source.max_megabytes * 1e6
    seen = size = 0
    for text in _texts(unit, counts):
        seen += len(text.encode(errors="replace"))
        tell(max(seen / max(1, unit.bytes), size / limit))
        cleaned = clean(text, config.cleaning, counts)
        if not cleaned:
            continue
        size += len(cleaned.encode())
        digest = hashlib.sha256(cleaned.replace("\n", " ").lower().encode()).digest()[:16]
        if copies := _copies(unit.source.weight, config.seed, digest):
            bands = minhash_bands(cleaned) if config.cleaning.near_duplicates else None
            yield Document(cleaned, digest, copies, bands)
        else:
            counts.drop("document: weight of its source", cleaned)
        if size >= limit:
            break
    check_rows(unit.source, counts)


def _texts(unit: WorkUnit, counts: Counts) -> Iterator[str]:
    """The documents of a unit as their source has them, one paragraph a line."""
    source = source_of(unit.source)
    for fragment in unit.fragments:
        yield from source.read(fragment, unit.source, counts)


def _copies(weight: float, seed: int, digest: bytes) -> int:
    """The weight rounded down, or up for as large a share of the documents as the weight's fraction says."""
    whole, fraction = divmod(weight, 1)
    if not fraction:
        return int(whole)
    draw = hashlib.sha256(f"weight {seed} ".encode() + digest).digest()[:8]
    return int(whole) + (int.from_bytes(draw) < fraction * 2**64)
