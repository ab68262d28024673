"""What a source of text is: how a configuration describes it, what it is cut into, and what it can do."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources.remote import RemotePath

InputPath = Path | RemotePath
# Fields that some kinds of source cannot do without, and what they must name.
NEEDS = {"files": "at least one file or glob pattern", "hub_name": "the name or folder of a data set"}
# Marks fields that older corpora do not have: these were made with their defaults.
LATER = {"later": True}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of text.

    Args:
        source: The kind of source, of those at the end of `earlybert prepare --help`; `mix` is several, see `mix`.
        files: Files, folders or glob patterns, on disk or as URLs (s3://, gs://, https://). `.txt`, `.jsonl` and `.xml`
            may be compressed as `.gz`, `.bz2`, `.xz` or `.zst`.
        text_field: The field (`.jsonl`, `hub`) or column (`.parquet`) with a row's text, one paragraph a line;
            --text_column is the same option.
        hub_name: For `hub`: name of the data set, or a local data set folder.
        hub_config: For `hub`: name of the data set's configuration, where it has several.
        hub_split: For `hub`: the split to read.
        language: Code of the text's language (de, hi, zh): where sentences end depends on its abbreviations.
        max_rows_without_text: Rows without text are skipped and counted. More than this share of the rows that are
            read together is an error.
        max_megabytes: Stop reading after so much text (10**6 bytes of UTF-8); the text before it is read in order, so
            by one worker.

    Raises:
        UserError: A field has a value that cannot work.
    """

    source: str = "pydocs"
    files: list[str] = field(default_factory=list)
    text_field: str = "text"
    hub_name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    language: str = field(default="en", metadata=LATER)
    max_rows_without_text: float = field(default=0.05, metadata=LATER)
    max_megabytes: float | None = None

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading anything or knowing the sources."""
        if self.max_megabytes is not None and not self.max_megabytes > 0:
            raise UserError(f"max_megabytes is {self.max_megabytes}, but must be above 0.")
        if not 0 <= self.max_rows_without_text <= 1:
            raise UserError(f"max_rows_without_text is {self.max_rows_without_text}, but must be from 0 to 1.")
        if not LANGUAGE.fullmatch(self.language):
            raise UserError(f"language is {self.language!r}, but must be a code such as en, de, hi or zh.")


@dataclass(frozen=True)
class Fragment:
    """What is read in one go: a file or a stretch of it, or a shard of a data set.

    Attributes:
        path: The file; None for sources without files.
        bytes: About how much text it holds, unpacked.
        start: Where it begins: a byte of the file (of the packed file for multistream dumps), a row group of a Parquet
            file, or the number of a data set's shard.
        end: What comes after its last byte or row group; None for all that follows.
        modified: When the file last changed, in nanoseconds since 1970: what was read of another state of the file
            shall not be taken for this fragment.
    """

    path: InputPath | None
    bytes: int
    start: int = 0
    end: int | None = None
    modified: int = 0


class Source(ABC):
    """A kind of source, registered in `registry.py`. It holds no state: every worker has one of its own.

    Attributes:
        name: What `--source` calls it.
        meaning: What it reads, for help texts.
        needs: The field of the configuration without which there is nothing to read, if any.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    needs: ClassVar[Literal["files", "hub_name"] | None] = None

    @abstractmethod
    def fragments(self, config: SourceConfig) -> list[Fragment]:
        """All that there is to read, cut as finely as it can be read apart, in a fixed order.

        Where one fragment's `end` is the `start` of the next, of the same file, they may come back as one.

        Raises:
            UserError: Something is missing, or is seen to be no such source without reading its text.
        """

    @abstractmethod
    def read(self, fragment: Fragment, config: SourceConfig, counts: Counts) -> Iterator[str]:
        """The documents of a fragment, one paragraph a line.

        Args:
            fragment: One of `fragments(config)`, or neighbours of one file joined.
            config: The configuration.
            counts: Is told everything that is dropped.

        Raises:
            UserError: Something cannot be read; the message names the file and the line, page or row.
        """
