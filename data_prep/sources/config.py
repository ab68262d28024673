"""Where the text of a corpus comes from, and what is cleaned out of it."""

from dataclasses import dataclass, field
from typing import Literal

from earlybert.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of text.

    Args:
        source: `pydocs` (prose from the documentation of the installed Python and its packages; needs no download),
            `text` (files of one's own), `books` (files with one book each, whose chapters become documents),
            `mediawiki` (dumps of Wikipedia and its sisters), `hub` (a data set for the `datasets` library) or `mix`
            (several of these, see `mix`).
        files: Files or glob patterns, plain or compressed as `.gz`, `.bz2`, `.xz` or `.zst`. For `text`: `.txt` (one
            paragraph a line, a blank line between documents) or `.jsonl` (one document a line); for `books`: `.txt`
            (a blank line between paragraphs); for `mediawiki`: XML dumps (`pages-articles`, whole or in parts). Parts
            of a multistream dump are read in parallel when the index lies beside it under its original name.
        text_field: For `.jsonl` and `hub`: the field that holds a document's text, one paragraph a line.
        hub_name: For `hub`: name of the data set, or a local data set folder.
        hub_config: For `hub`: name of the data set's configuration, where it has several.
        hub_split: For `hub`: the split to read.
        max_megabytes: Stop reading after so much text (10**6 bytes of UTF-8); the text before it is read in order, so
            by one worker.

    Raises:
        UserError: A field has a value that cannot work.
    """

    source: Literal["pydocs", "text", "books", "mediawiki", "hub", "mix"] = "pydocs"
    files: list[str] = field(default_factory=list)
    text_field: str = "text"
    hub_name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    max_megabytes: float | None = None

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading anything."""
        sources = ("pydocs", "text", "books", "mediawiki", "hub", "mix")
        if self.source not in sources:
            raise UserError(f"source is {self.source!r}, but must be one of {', '.join(sources)}.")
        if self.source in ("text", "books", "mediawiki") and not self.files:
            raise UserError(f"files is empty, but source {self.source} needs at least one file or glob pattern.")
        if self.source == "hub" and not self.hub_name:
            raise UserError("hub_name is not set, but source hub needs the name or folder of a data set.")
        if self.max_megabytes is not None and not self.max_megabytes > 0:
            raise UserError(f"max_megabytes is {self.max_megabytes}, but must be above 0.")


@dataclass(frozen=True, kw_only=True)
class MixedSource(SourceConfig):
    """One source of a mix.

    Args:
        name: What statistics and messages call it.
        weight: How often each of its documents enters one pass over the training text: 2 means twice, 0.3 a random
            three tenths of the documents once, 1.3 all once and three tenths of them twice.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading anything."""
        super().__post_init__()
        if self.source == "mix":
            raise UserError(f"mix: {self.name} has the source mix, but a mix holds no other mix.")
        if not 0 < self.weight <= 100:
            raise UserError(f"mix: {self.name} has the weight {self.weight}, but it must be above 0 and at most 100.")


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What is dropped. Text is always brought to Unicode's form NFC; exact duplicates are always dropped.

    Args:
        min_paragraph_characters: Shorter paragraphs are dropped.
        min_document_characters: Documents with less text are dropped.
        min_letter_share: Paragraphs stay only when more of their characters than this share are letters. Vowel signs
            and other marks are letters too; space and punctuation count for nothing, so "No!" has letters only.
        max_symbol_share: Paragraphs in which more of the characters are symbols of code, tables and markup are dropped.
        near_duplicates: Drop documents that share most of their five-word sequences with an earlier one (MinHash);
            needs `pip install rensa`.

    Raises:
        UserError: A field has a value that cannot work.
    """

    min_paragraph_characters: int = 1
    min_document_characters: int = 20
    min_letter_share: float = 0.5
    max_symbol_share: float = 0.1
    near_duplicates: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("min_paragraph_characters", "min_document_characters"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"cleaning.{name} is {value}, but must be at least 1.")
        for name in ("min_letter_share", "max_symbol_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"cleaning.{name} is {share}, but must be from 0 to 1.")
