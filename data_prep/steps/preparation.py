"""A corpus in the making. Everything lies in a folder beside its directory, where work can be taken up at any point.

    config.json                     what is being made
    CODE/units/KEY/                 one unit of the input: its sentences (`UnitFiles`)
    CODE/tokenizer-KEY/             loaded or trained
    CODE/tokens-KEY/KEY/            a unit's tokens (`UnitTokens`)
    CODE/merged-KEY/text/           the text of each split (`joining`)
    CODE/merged-KEY/SPLIT-LENGTH/   spills and notes of the shuffle (`shards`)
    CODE/merged-KEY/corpus/         what becomes the corpus directory

Files are complete or absent, and each depends on the configuration, the input and this program only; so it does not
matter how many processes or machines make them, in which order, and how often they are killed. A key stands for all
that a step's result depends on: a unit for its input, a vocabulary for the units or the file it is from, tokens for
both. What has changed is made again, and only that. CODE stands for the program: another version begins anew.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from earlybert.core.errors import UserError
from earlybert.core.files import content_hash, file_hash, read_json, whole_folder, write_json
from earlybert.core.paths import did_you_mean, what_is_there
from earlybert.core.progress import say
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.job_progress import portion
from earlybert.data_prep.samples.manifest import describe_file, write_manifest
from earlybert.data_prep.samples.shards import TOKENS_PER_SHARD, SampleSet, make_samples, shard_folder
from earlybert.data_prep.steps.hints import (
    marks_removed,
    one_sentence_documents,
    repeated_lines,
    require_own_case,
    unknown_characters,
)
from earlybert.data_prep.steps.joining import COUNTS, SPLITS, held_out, join
from earlybert.data_prep.steps.reading import work_units
from earlybert.data_prep.steps.same_corpus import file_hashes, given_hashes, require_same
from earlybert.data_prep.steps.unit_files import UnitFiles, UnitTokens
from earlybert.data_prep.tokens.adding import add_tokens, read_tokens
from earlybert.data_prep.tokens.statistics import token_frequencies, unigram_statistics
from earlybert.data_prep.tokens.text import TokenisedText
from earlybert.data_prep.tokens.tokenizer import (
    Encoder,
    SpecialTokens,
    load_tokenizer,
    local_tokenizer,
    special_tokens,
    token_dtype,
    tokenizer_files,
    vocabulary_size,
)
from earlybert.data_prep.tokens.training import train_tokenizer
from earlybert.data_prep.workers import Workers

# More text changes a vocabulary of usual size little, and training SentencePiece on it would take over 1 GB.
SAMPLE_BYTES = 32 * 10**6
CONFIG = "config.json"
# Share of the time of a unit that is read and tokenised; for progress only, and about right.
READING = 0.5
# All code that a corpus depends on.
CODE = tuple(Path(str(resources.files(f"earlybert.{room}"))) for room in ("core", "data_prep"))


def work_folder(directory: Path) -> Path:
    """Where the work on a corpus lies until it is done."""
    place = _behind_link(directory)
    return place.parent / f"{place.name}.partial"


def _behind_link(directory: Path) -> Path:
    """Where a corpus is to lie: a finished folder takes the place of an empty one, but not of a link to one."""
    return directory.resolve() if directory.is_symlink() else directory


def unfinished_config(directory: Path) -> CorpusConfig:
    """The configuration of a corpus that is in the making.

    Raises:
        UserError: None is.
    """
    path = work_folder(directory) / CONFIG
    if not path.is_file():
        hint = did_you_mean(directory) or f"; {what_is_there(directory)}"
        raise UserError(f"{path} is missing: no part of the corpus {directory} has been prepared{hint}")
    return CorpusConfig.from_dict(read_json(path))


@cache
def code_key() -> str:
    files = sorted(file for folder in CODE for file in folder.rglob("*.py"))
    return content_hash([file_hash(file) for file in files])[:16]


def _as_seen_here(file: Path) -> tuple[str, bool]:
    """Which program this is, and whether it sees a file."""
    return code_key(), file.is_file()


@dataclass(frozen=True)
class Vocabulary:
    """What the making of samples needs to know of the tokenizer; `key` stands for all that it depends on."""

    key: str
    file: Path
    size: int
    special: SpecialTokens

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.size)


class Preparation:
    """The steps from input to corpus directory."""

    def __init__(self, config: CorpusConfig, directory: Path, workers: Workers) -> None:
        """Look at the input, and find or make the folder for the work.

        Raises:
            UserError: The input cannot be found, or the folder holds work on another corpus.
        """
        self.config, self.directory, self.workers = config, directory, workers
        # Taken now: by the end the files may have been changed.
        self.given = given_hashes(config)
        self.work = work_folder(directory) / code_key()
        self.units = [UnitFiles(self.work / "units", unit) for unit in work_units(config)]
        path = work_folder(directory) / CONFIG
        if not path.is_file():
            write_json(path, config.as_dict())
        require_same(config, read_json(path), f"{path.parent} holds the unfinished work on a corpus")
        for worker, seen in workers.everywhere(_as_seen_here, path.absolute()).items():
            if seen != _as_seen_here(path):
                what = "another version of this program" if seen[1] else f"no file {path.absolute()}"
                raise UserError(f"dask: the worker {worker} has {what}; all need the same program and the same files.")

    def forget_unless_begun(self) -> None:
        """Remove the folder for the work when it holds nothing worth going on with."""
        if not any(unit.is_read and len(unit.digests) for unit in self.units):
            shutil.rmtree(work_folder(self.directory), ignore_errors=True)

    def vocabulary(self) -> Vocabulary:
        """Load or train the tokenizer, or take up the one of the same file or text that is there already."""
        path = local_tokenizer(self.config.tokenizer) if self.config.tokenizer else None
        added = Path(self.config.add_tokens) if self.config.add_tokens else None
        if added:
            read_tokens(added)  # which raises before any text is read
        read = [unit.unit.key for unit in _choose_units(self.units)]
        origin = file_hashes(tokenizer_files(Path(path)), "tokenizer") if path else read
        key = content_hash([origin, file_hashes([added], "add_tokens") if added else {}])
        folder = self._tokenizer_folder(key)
        if folder.is_dir():
            from transformers import PreTrainedTokenizerFast

            # Unlike load_tokenizer it does without importing PyTorch, as the kind of tokenizer does not matter here.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            tokenizer = self._load_tokenizer(path) if path else self._train_tokenizer()
            if added:
                add_tokens(tokenizer, added)
            with whole_folder(folder) as temporary:
                tokenizer.save_pretrained(temporary)
        return Vocabulary(key, folder / "tokenizer.json", vocabulary_size(tokenizer), special_tokens(tokenizer))

    def _tokenizer_folder(self, key: str) -> Path:
        return self.work / f"tokenizer-{key[:16]}"

    def tokens(self, vocabulary: Vocabulary) -> list[UnitTokens]:
        """Where the tokens of every unit are, or will be."""
        return [UnitTokens(self.work / f"tokens-{vocabulary.key[:16]}", unit) for unit in self.units]

    def _load_tokenizer(self, path: str) -> Any:
        lowercase, strip_accents = self.config.lowercase, self.config.strip_accents
        tokenizer = load_tokenizer(path, lowercase=lowercase, strip_accents=strip_accents)
        require_own_case(tokenizer, path)
        return tokenizer

    def _train_tokenizer(self) -> Any:
        chosen = _choose_units(self.units)
        jobs = [(unit, self.config) for unit in chosen]
        sizes = [unit.unit.bytes_to_read for unit in chosen]
        self.workers.run(_read, jobs, "Reading text for the vocabulary", sizes, in_bytes=True)
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            sample = Path(folder) / "sentences.txt"
            if not _write_sample(sample, chosen, self.config):
                if documents := sum(len(unit.digests) for unit in chosen):
                    _check_splits(self.config, 0, documents)
                raise self._no_text()
            say(f"Training a {self.config.tokenizer_kind} vocabulary of {self.config.vocab_size} pieces")
            return train_tokenizer(
                sample,
                kind=self.config.tokenizer_kind,
                vocab_size=self.config.vocab_size,
                lowercase=self.config.lowercase,
                strip_accents=self.config.strip_accents,
            )

    def _no_text(self) -> UserError:
        sources = [f"{source.name} {' '.join(source.files) or source.hub_name or ''}" for source in self.config.sources]
        counts = Counts()
        for unit in (unit for unit in self.units if unit.is_read):
            counts.add(unit.counts())
        rule = max(counts.rules, key=lambda name: counts.rules[name].characters, default=None)
        lost = f"; the rule {rule!r} dropped {counts.rules[rule].dropped} of its texts" if rule else ""
        return UserError(f"The source {', '.join(sources).strip()} holds no text, but a corpus needs some{lost}.")

    def make_units(self, vocabulary: Vocabulary, part: int, parts: int) -> int:
        """Read and tokenise every `parts`-th unit from the `part`-th on (from 1); returns how many there are."""
        mine = self.tokens(vocabulary)[part - 1 :: parts]
        waiting = [tokens for tokens in mine if not tokens.is_done]
        jobs = [(tokens, self.config, vocabulary) for tokens in waiting]
        sizes = [tokens.text.unit.bytes_to_read for tokens in waiting]
        self.workers.run(_read_and_tokenise, jobs, "Reading and tokenising", sizes, in_bytes=True)
        return len(mine)

    def merge(self, vocabulary: Vocabulary) -> None:
        """Everything after the units: the corpus directory is complete afterwards.

        Raises:
            UserError: Units are missing, or there is too little text.
        """
        tokenised = self.tokens(vocabulary)
        missing = [tokens.text.unit.name for tokens in tokenised if not tokens.is_done]
        if missing:
            raise UserError(
                f"{work_folder(self.directory)} lacks {len(missing)} of {len(self.units)} units, the first of them "
                f"{missing[0]}; prepare the missing parts first."
            )
        key = content_hash([vocabulary.key, *(unit.unit.key for unit in self.units)])
        merged = self.work / f"merged-{key[:16]}"
        if not (merged / "text").is_dir():
            join(tokenised, self.config, vocabulary.dtype, merged / "text")
        counts = read_json(merged / "text" / COUNTS)
        if not any(split["documents"] for split in counts["splits"].values()):
            raise self._no_text()
        _check_splits(self.config, *(counts["splits"][split]["documents"] for split in SPLITS))
        for split in SPLITS:
            self._make_split(merged, split, counts["splits"][split], vocabulary)
        self._finish(merged, counts, vocabulary)

    def _make_split(self, merged: Path, split: str, counts: dict[str, Any], vocabulary: Vocabulary) -> None:
        """Make the samples of one split; what they hold goes to `counts`."""
        counts["samples"], counts["usage"] = {}, {}
        for length in self.config.lengths:
            samples = SampleSet(
                split=split,
                length=length,
                shards=-(-counts["tokens_with_copies"] // TOKENS_PER_SHARD),
                text=merged / "text" / split,
                folder=shard_folder(merged / "corpus", split, length),
                work=merged / f"{split}-{length}",
                dtype=vocabulary.dtype.name,
                special=vocabulary.special,
                config=self.config,
            )
            usage = make_samples(samples, self.workers)
            if not usage["samples"]:
                raise UserError(
                    f"The {counts['documents']} documents for {split} give no samples: each is a single token, but "
                    f"objective {self.config.objective} needs two; take another objective, text or tokenizer."
                )
            usage["fill"] = usage["tokens"] / (usage["samples"] * length)
            if self.config.packing:
                usage["packed_fill"] = usage["tokens"] / (usage["packed_rows"] * length)
            counts["samples"][str(length)] = usage.pop("samples")
            counts["usage"][str(length)] = usage

    def _finish(self, merged: Path, counts: dict[str, Any], vocabulary: Vocabulary) -> None:
        """Write the manifest and put the corpus in its place."""
        corpus = merged / "corpus"
        shutil.copytree(self._tokenizer_folder(vocabulary.key), corpus / "tokenizer", dirs_exist_ok=True)
        files = []
        for file in sorted(path for path in corpus.rglob("*") if path.is_file()):
            if file.name.startswith("."):
                file.unlink()  # begun by a process that was killed
            elif file.parent != corpus:
                files.append(file)
        described = self.workers.run(describe_file, [(file,) for file in files], "Computing checksums")
        texts = {split: TokenisedText.open(merged / "text" / split, vocabulary.dtype) for split in SPLITS}
        frequencies = {split: token_frequencies(text, vocabulary.size) for split, text in texts.items()}
        held_out_counts = counts["splits"]["validation"]
        unknown = int(frequencies["validation"][vocabulary.special.unknown])
        content = {
            "config": self.config.as_dict(),
            "vocabulary": {
                "size": vocabulary.size,
                "special_tokens": asdict(vocabulary.special),
                "sha256": describe_file(vocabulary.file)["sha256"],
                **({"given_sha256": self.given} if self.given else {}),
                "pieces_per_word": held_out_counts["tokens"] / held_out_counts["words"],
                "unknown_share": unknown / held_out_counts["tokens"],
                **({"unknown_character_share": self._unknown_characters(vocabulary)} if unknown else {}),
            },
            "counts": counts["splits"],
            "dropped": counts["rules"],
            **unigram_statistics(frequencies["train"], frequencies["validation"]),
        }
        names = (file.relative_to(corpus).as_posix() for file in files)
        write_manifest(corpus, content, dict(zip(names, described, strict=True)))
        for hint in (
            one_sentence_documents(self.config, counts["splits"]["train"]),
            repeated_lines(_choose_units(self.units)),
            marks_removed(_choose_units(self.units), _encoder(vocabulary)),
        ):
            if hint:
                say(hint)
        corpus.rename(_behind_link(self.directory))
        shutil.rmtree(work_folder(self.directory), ignore_errors=True)

    def _unknown_characters(self, vocabulary: Vocabulary) -> float:
        """Share of the held-out text's characters that become [UNK]."""
        documents = (unit.sentences_of(np.flatnonzero(held_out(unit.digests, self.config))) for unit in self.units)
        encoder, unknown = _encoder(vocabulary), vocabulary.special.unknown
        share, hint = unknown_characters(chain.from_iterable(documents), encoder, unknown)
        if hint:
            say(hint)
        return share


def _check_splits(config: CorpusConfig, train: int, validation: int) -> None:
    """Raises UserError where one split has too few documents."""
    needed = 2 if config.objective == "nsp" else 1
    if min(train, validation) < needed:
        why = " (random second segments come from another document)" if config.objective == "nsp" else ""
        raise UserError(
            f"The text has {train + validation} documents, of which validation_fraction {config.validation_fraction} "
            f"leaves {train} for training and {validation} for validation, but each needs at least {needed}{why}."
        )


def _choose_units(all_units: Sequence[UnitFiles]) -> list[UnitFiles]:
    """Units for the vocabulary, as if drawn at random: about `SAMPLE_BYTES` of them, some of every source."""
    chosen: list[UnitFiles] = []
    size = 0
    for unit in sorted(all_units, key=lambda unit: hashlib.sha256(unit.unit.name.encode()).digest()):
        if size < SAMPLE_BYTES or unit.unit.source not in (one.unit.source for one in chosen):
            chosen.append(unit)
            size += unit.unit.bytes
    return chosen


def _write_sample(path: Path, chosen: Sequence[UnitFiles], config: CorpusConfig) -> int:
    """Write the training documents of some units, from each its share of `SAMPLE_BYTES`; returns the bytes."""
    share = SAMPLE_BYTES // len(chosen)
    total = 0
    with path.open("wb") as sample:
        for unit in chosen:
            validates = held_out(unit.digests, config).tolist()
            document, size = 0, 0
            with unit.sentences.open("rb") as sentences:
                for line in sentences:
                    if line == b"\n":
                        document += 1
                        if size >= share:
                            break
                    elif not validates[document]:
                        sample.write(line)
                        size += len(line)
            total += size
    return total


def _read(unit: UnitFiles, config: CorpusConfig) -> None:
    if not unit.is_read:
        unit.read(config)


def _read_and_tokenise(tokens: UnitTokens, config: CorpusConfig, vocabulary: Vocabulary) -> None:
    reading = 0.0 if tokens.text.is_read else READING
    with portion(0.0, reading):
        _read(tokens.text, config)
    with portion(reading, 1.0):
        tokens.make(_encoder(vocabulary), vocabulary.dtype)


@lru_cache(maxsize=1)
def _encoder(vocabulary: Vocabulary) -> Encoder:
    return Encoder(vocabulary.file)
