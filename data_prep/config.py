"""What a corpus is made from and how: every field of `earlybert prepare`."""

from dataclasses import dataclass, field
from typing import Literal

from earlybert.data_prep.errors import CorpusError

MINIMUM_LENGTH = 8
# Five special tokens and an alphabet have to fit, or WordPiece learns nothing.
MINIMUM_VOCABULARY = 128


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How to make a corpus.

    Equal configurations over equal text give byte-equal corpora.

    Args:
        source: `pydocs` (prose from the documentation of the installed Python and its packages; needs no download),
            `text` (files of one's own) or `hub` (a data set for the `datasets` library).
        files: For `text`: files or glob patterns; `.txt` (one paragraph a line, a blank line between documents) or
            `.jsonl` (one document a line), plain or compressed as `.gz`, `.bz2` or `.xz`.
        text_field: For `.jsonl` and `hub`: the field that holds a document's text, one paragraph a line.
        hub_name: For `hub`: name of the data set, or a local data set folder.
        hub_config: For `hub`: name of the data set's configuration, where it has several.
        hub_split: For `hub`: the split to read.
        max_megabytes: Stop reading after so much text (10**6 bytes of UTF-8).
        tokenizer: A `vocab.txt`, a `tokenizer.json` or a folder with a fast Hugging Face tokenizer. Without one a
            WordPiece vocabulary is trained on the text.
        vocab_size: Entries of the vocabulary to train, special tokens included.
        lowercase: Lowercase and strip accents; for a trained vocabulary and for a bare `vocab.txt` (other tokenizers
            state it themselves).
        lengths: Sequence lengths to prepare, in tokens, special tokens included.
        next_sentence: Make pairs of segments with a next-sentence label; otherwise single segments of whole sentences.
        short_sequence_probability: Share of the samples that aim at a random shorter length.
        duplicates: Passes over the training documents, each with fresh segments (BERT's `dupe_factor`).
        validation_fraction: Share of the documents held out for validation.
        seed: Seed of the split, the segments and the order of the samples.

    Raises:
        CorpusError: A field has a value that cannot work.
    """

    source: Literal["pydocs", "text", "hub"] = "pydocs"
    files: list[str] = field(default_factory=list)
    text_field: str = "text"
    hub_name: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    max_megabytes: float | None = None
    tokenizer: str | None = None
    vocab_size: int = 30522
    lowercase: bool = True
    lengths: list[int] = field(default_factory=lambda: [128, 512])
    next_sentence: bool = True
    short_sequence_probability: float = 0.1
    duplicates: int = 1
    validation_fraction: float = 0.05
    seed: int = 42

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading anything."""
        if self.source not in ("pydocs", "text", "hub"):
            raise CorpusError(f"source is {self.source!r}, but must be pydocs, text or hub.")
        if self.source == "text" and not self.files:
            raise CorpusError("files is empty, but source text needs at least one file or glob pattern.")
        if self.source == "hub" and not self.hub_name:
            raise CorpusError("hub_name is not set, but source hub needs the name or folder of a data set.")
        if not self.lengths or len(set(self.lengths)) != len(self.lengths):
            raise CorpusError(f"lengths is {self.lengths}, but must name at least one length and none twice.")
        if min(self.lengths) < MINIMUM_LENGTH:
            raise CorpusError(
                f"lengths has {min(self.lengths)}, but a sequence needs at least {MINIMUM_LENGTH} tokens."
            )
        if self.vocab_size < MINIMUM_VOCABULARY:
            raise CorpusError(f"vocab_size is {self.vocab_size}, but must be at least {MINIMUM_VOCABULARY}.")
        if self.max_megabytes is not None and not self.max_megabytes > 0:
            raise CorpusError(f"max_megabytes is {self.max_megabytes}, but must be above 0.")
        if not 0 <= self.short_sequence_probability <= 1:
            raise CorpusError(
                f"short_sequence_probability is {self.short_sequence_probability}, but must be from 0 to 1."
            )
        if not 0 < self.validation_fraction < 1:
            raise CorpusError(
                f"validation_fraction is {self.validation_fraction}, but must be between 0 and 1, both excluded."
            )
        if self.duplicates < 1:
            raise CorpusError(f"duplicates is {self.duplicates}, but must be at least 1.")
        if self.seed < 0:
            raise CorpusError(f"seed is {self.seed}, but must not be negative.")
