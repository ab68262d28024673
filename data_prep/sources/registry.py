"""Where text comes from: the input is cut into units, and each unit gives cleaned documents.

Everything here is a pure function of the configuration and the input. Duplicates over all units are found by
`duplicates.py` from what each document carries.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.cleaning.near_duplicates import check_library, minhash_bands
from earlybert.data_prep.cleaning.rules import clean
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources import pydocs
from earlybert.data_prep.sources.books import book_pieces, read_book
from earlybert.data_prep.sources.config import MixedSource, SourceConfig
from earlybert.data_prep.sources.hub import hub_pieces, read_hub
from earlybert.data_prep.sources.input_files import Piece
from earlybert.data_prep.sources.mediawiki import dump_pieces, read_articles
from earlybert.data_prep.sources.text_files import read_text, text_pieces

# About so many units a source, so that work spreads evenly over many workers and an interruption costs little; but
# units so small that their files and processes cost more than their text would be no gain, nor units of hours.
UNITS_PER_SOURCE = 128
SMALLEST_UNIT, LARGEST_UNIT = 1 << 20, 1 << 26
PYDOCS_BYTES = 10**7


@dataclass(frozen=True)
class Unit:
    """A part of the input that one worker reads in one go: small files together, or a stretch of a huge one.

    Attributes:
        name: Differs from that of every other unit, and is the same in every run; for messages and progress.
        source: The source it belongs to, with its name in the mix (`unit.source.name`).
        pieces: What to read, in order.
    """

    name: str
    source: MixedSource
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """About how much text it holds, unpacked, markup included."""
        return sum(piece.bytes for piece in self.pieces)


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


def units(config: CorpusConfig) -> list[Unit]:
    """The input, cut into disjoint units in a fixed order.

    Names and sizes of files are looked at, and indices of multistream dumps; no text is read. The cut depends on the
    configuration and the input only. A source with `max_megabytes` is a single unit.

    Raises:
        UserError: A pattern matches no file, a file has an unknown ending, a data set cannot be found, or a library
            is missing.
    """
    if config.cleaning.near_duplicates:
        check_library()
    found: list[Unit] = []
    for source in config.sources:
        groups = [_pieces(source)] if source.max_megabytes else _grouped(_pieces(source))
        found += [Unit(f"{source.name}-{number:05d}", source, tuple(group)) for number, group in enumerate(groups)]
    return found


def _pieces(source: SourceConfig) -> list[Piece]:
    if source.source == "text":
        return text_pieces(source)
    if source.source == "books":
        return book_pieces(source)
    if source.source == "mediawiki":
        return dump_pieces(source)
    if source.source == "hub":
        return hub_pieces(source)
    return [Piece(None, PYDOCS_BYTES)]


def _grouped(pieces: list[Piece]) -> list[list[Piece]]:
    """Neighbours together up to the size of a unit; stretches of one file that follow one another become one."""
    target = sum(piece.bytes for piece in pieces) // UNITS_PER_SOURCE
    target = min(max(target, SMALLEST_UNIT), LARGEST_UNIT)
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.bytes > room or not groups:
            groups.append([])
            room = target
        room -= piece.bytes
        last = groups[-1][-1] if groups[-1] else None
        if last and last.path == piece.path and last.end == piece.start:
            groups[-1][-1] = replace(last, bytes=last.bytes + piece.bytes, end=piece.end)
        else:
            groups[-1].append(piece)
    return groups


def read_unit(unit: Unit, config: CorpusConfig, counts: Counts) -> Iterator[Document]:
    """The cleaned documents of one unit, in order. A unit may well give none.

    Args:
        unit: One of `units(config)`.
        config: The configuration that the unit was made from.
        counts: Is told everything that is dropped.

    Raises:
        UserError: Something cannot be read; the message names the file and the line, page or offset.
    """
    limit = float("inf") if unit.source.max_megabytes is None else unit.source.max_megabytes * 1e6
    size = 0
    for text in _texts(unit, counts):
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
            return


def _texts(unit: Unit, counts: Counts) -> Iterator[str]:
    """The documents of a unit as their source has them, one paragraph a line."""
    source = unit.source
    for piece in unit.pieces:
        if source.source == "text":
            yield from read_text(piece, source)
        elif source.source == "books":
            yield from read_book(piece)
        elif source.source == "mediawiki":
            yield from read_articles(piece, counts)
        elif source.source == "hub":
            yield from read_hub(piece, source)
        else:
            yield from pydocs.documents()


def _copies(weight: float, seed: int, digest: bytes) -> int:
    """The weight rounded down, or up for as large a share of the documents as the weight's fraction says."""
    whole, fraction = divmod(weight, 1)
    if not fraction:
        return int(whole)
    draw = hashlib.sha256(f"weight {seed} ".encode() + digest).digest()[:8]
    return int(whole) + (int.from_bytes(draw) < fraction * 2**64)
