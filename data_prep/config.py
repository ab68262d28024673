"""What a corpus is made from and how: every field of `earlybert prepare`."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.config import CleaningConfig
from earlybert.data_prep.sources.registry import check_source
from earlybert.data_prep.sources.source import LATER, SourceConfig

Objective = Literal["nsp", "sop", "full-sentences"]
TokenizerKind = Literal["wordpiece", "unigram", "bpe"]
MINIMUM_LENGTH = 8
# Five special tokens and an alphabet have to fit, or WordPiece learns nothing.
MINIMUM_VOCABULARY = 128
# In the place of a kind of source: several sources.
MIX = "mix"


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
        if self.source == MIX:
            raise UserError(f"mix: {self.name} has the source mix, but a mix holds no other mix.")
        check_source(self)
        if not 0 < self.weight <= 100:
            raise UserError(f"mix: {self.name} has the weight {self.weight}, but it must be above 0 and at most 100.")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(SourceConfig):
    """How to make a corpus.

    Equal configurations over equal text give byte-equal corpora.

    Args:
        mix: For source `mix`: the sources, each with a name and a weight.
        cleaning: What is dropped from the text.
        tokenizer: A `vocab.txt`, a `tokenizer.json`, a folder (of a fast Hugging Face tokenizer, a model, a corpus or a
            run), or the name of a model on the hub. Without one a vocabulary is trained on a sample of the text.
        add_tokens: A file of words that the vocabulary gets beside its own, one a line. A network that `initial` names
            begins with the mean of their pieces' rows for each.
        tokenizer_kind: What to train: `wordpiece` (BERT's), or SentencePiece's `unigram` or `bpe`.
        vocab_size: Entries of the vocabulary to train, special tokens included.
        lowercase: Lowercase the text; for a trained vocabulary and for a bare `vocab.txt` (other tokenizers state it
            themselves).
        strip_accents: Take accents and vowel signs off; for the same. Unless given, a trained vocabulary that is
            lowercased takes them off text in which at most 1 % of the words have any, and a bare `vocab.txt` where its
            tokens have hardly any.
        lengths: Sequence lengths to prepare, in tokens, special tokens included.
        objective: `nsp` (pairs of segments; the second is the next one or, every second time, one from another
            document), `sop` (pairs of neighbours; every second time swapped) or `full-sentences` (single segments of
            whole sentences, no pairs).
        short_sequence_probability: Share of the samples that aim at a random shorter length.
        duplicates: Passes over the training documents, each with fresh segments (BERT's `dupe_factor`).
        packing: Plan which short samples share a row of the full length, and store the plan.
        validation_fraction: Chance of each document to be held out for validation.
        seed: Seed of the split, the segments and the order of the samples.

    Raises:
        UserError: A field has a value that cannot work.
    """

    mix: list[MixedSource] = field(default_factory=list)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    tokenizer: str | None = None
    add_tokens: str | None = field(default=None, metadata=LATER)
    tokenizer_kind: TokenizerKind = "wordpiece"
    vocab_size: int = 30522
    lowercase: bool = True
    strip_accents: bool | None = field(default=None, metadata=LATER)
    lengths: list[int] = field(default_factory=lambda: [128, 512])
    objective: Objective = "nsp"
    short_sequence_probability: float = 0.1
    duplicates: int = 1
    packing: bool = False
    validation_fraction: float = 0.05
    seed: int = 42

    def __post_init__(self) -> None:
        """Check every field that can be checked without reading anything."""
        super().__post_init__()
        check_source(self, others=(MIX,))
        names = [source.name for source in self.mix]
        if (self.source == MIX) != bool(names) or len(set(names)) != len(names):
            raise UserError(
                f"source is {self.source!r} and mix names {names}, but source mix needs at least one source and no "
                "name twice, and other sources need mix to be empty."
            )
        own: dict[str, Any] = {"files": [], "hub_name": None, "max_megabytes": None, "language": "en"}
        if self.source == MIX and any(getattr(self, name) != default for name, default in own.items()):
            raise UserError(f"{', '.join(own)} belong to the sources of a mix, not beside it.")
        for name, choices in (("objective", Objective), ("tokenizer_kind", TokenizerKind)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise UserError(f"{name} is {value!r}, but must be one of {', '.join(get_args(choices))}.")
        if not self.lengths or len(set(self.lengths)) != len(self.lengths):
            raise UserError(f"lengths is {self.lengths}, but must name at least one length and none twice.")
        if min(self.lengths) < MINIMUM_LENGTH:
            raise UserError(f"lengths has {min(self.lengths)}, but a sequence needs at least {MINIMUM_LENGTH} tokens.")
        if self.vocab_size < MINIMUM_VOCABULARY:
            raise UserError(f"vocab_size is {self.vocab_size}, but must be at least {MINIMUM_VOCABULARY}.")
        if not 0 <= self.short_sequence_probability <= 1:
            raise UserError(
                f"short_sequence_probability is {self.short_sequence_probability}, but must be from 0 to 1."
            )
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"validation_fraction is {self.validation_fraction}, but must be between 0 and 1, both excluded."
            )
        if not 1 <= self.duplicates <= 100:
            raise UserError(f"duplicates is {self.duplicates}, but must be from 1 to 100.")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}, but must not be negative.")

    @property
    def sources(self) -> list[MixedSource]:
        """The sources in their order; a source that is no mix is one of weight 1, named like itself."""
        own = {field.name: getattr(self, field.name) for field in fields(SourceConfig)}
        return self.mix if self.source == MIX else [MixedSource(name=self.source, **own)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what older corpora do not know is left out where it says nothing, so equal corpora stay equal."""
        content = _without_defaults(self)
        return content | {"mix": [_without_defaults(source) for source in self.mix]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        mix = [MixedSource(**source) for source in content["mix"]]
        return cls(**content | {"mix": mix, "cleaning": CleaningConfig(**content["cleaning"])})


def _without_defaults(config: SourceConfig) -> dict[str, Any]:
    content = asdict(config)
    for item in fields(config):
        if item.metadata == LATER and content[item.name] == item.default:
            del content[item.name]
    return content
