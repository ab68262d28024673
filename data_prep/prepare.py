"""`earlybert prepare`: text in, corpus directory out; complete or absent."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np

from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.corpus import Corpus
from earlybert.data_prep.errors import CorpusError
from earlybert.data_prep.manifest import NAME, sha256, write_manifest
from earlybert.data_prep.randomness import generator
from earlybert.data_prep.samples import plan_samples, split_documents
from earlybert.data_prep.sentences import read_sentences, write_sentences
from earlybert.data_prep.shards import shard_folder, write_shards
from earlybert.data_prep.sources import documents
from earlybert.data_prep.statistics import count, unigram_statistics
from earlybert.data_prep.tokenizer import (
    TokenisedText,
    encode,
    load_tokenizer,
    special_tokens,
    train_tokenizer,
    vocabulary_size,
)

Item = TypeVar("Item")


def prepare(config: CorpusConfig, directory: Path) -> Corpus:
    """Make a corpus, or open it if the directory already holds one of the same configuration.

    Args:
        config: What it is made from and how.
        directory: New or empty directory for it; its parents are made.

    Raises:
        CorpusError: The text or the tokenizer cannot be used, or the directory holds something else.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        return _open_existing(config, directory)
    partial = directory.parent / f".{directory.name}.partial-{uuid4().hex}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise CorpusError(f"{directory} cannot be made ({error}).") from error
    try:
        _build(config, partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Corpus.open(directory)


def _open_existing(config: CorpusConfig, directory: Path) -> Corpus:
    if not (directory / NAME).is_file():
        raise CorpusError(f"{directory} exists and is not a corpus; name a new or an empty directory.")
    corpus = Corpus.open(directory)
    for name, value in asdict(config).items():
        if (found := corpus.manifest["config"].get(name)) != value:
            raise CorpusError(
                f"{directory} holds a corpus with {name} {found!r}, not {value!r}; name another directory or remove it."
            )
    _say(f"{directory} is there already.")
    return corpus


def _build(config: CorpusConfig, directory: Path) -> None:
    """Everything that makes a corpus, in order; the manifest comes last."""
    # A tokenizer that cannot be used shall not cost a pass over the text.
    tokenizer = load_tokenizer(config.tokenizer, lowercase=config.lowercase) if config.tokenizer else None

    sentences_file = directory / "sentences.txt"
    document_count = write_sentences(_track(documents(config), "Reading documents"), sentences_file)
    if tokenizer is None:
        _say(f"Training a vocabulary of {config.vocab_size} pieces")
        tokenizer = train_tokenizer(sentences_file, vocab_size=config.vocab_size, lowercase=config.lowercase)
    tokenizer.save_pretrained(directory / "tokenizer")
    tokenised = _track(read_sentences(sentences_file), "Tokenising", total=document_count)
    text, special = encode(tokenised, tokenizer), special_tokens(tokenizer)
    sentences_file.unlink()

    splits = split_documents(
        len(text.document_bounds) - 1, validation_fraction=config.validation_fraction, seed=config.seed
    )
    _check_splits(config, splits)
    counts = {split: count(text, chosen) for split, chosen in splits.items()}
    jobs = [(split, length) for split in splits for length in config.lengths]
    for split, length in _track(jobs, "Making samples", total=len(jobs)):
        plan = _plan(config, text, splits[split], split, length)
        write_shards(shard_folder(directory, split, length), text, plan, special)
        counts[split]["samples"][str(length)] = len(plan)
    size = vocabulary_size(tokenizer)
    write_manifest(
        directory,
        {
            "config": asdict(config),
            "vocabulary": {
                "size": size,
                "special_tokens": asdict(special),
                "sha256": sha256(directory / "tokenizer" / "tokenizer.json"),
            },
            "counts": counts,
            **unigram_statistics(text, splits, size),
        },
    )


def _check_splits(config: CorpusConfig, splits: dict[str, np.ndarray]) -> None:
    needed = 2 if config.next_sentence else 1
    sizes = {split: len(chosen) for split, chosen in splits.items()}
    if min(sizes.values()) < needed:
        why = " (random second segments come from another document)" if config.next_sentence else ""
        raise CorpusError(
            f"The text has {sum(sizes.values())} documents, of which validation_fraction {config.validation_fraction} "
            f"leaves {sizes['train']} for training and {sizes['validation']} for validation, but each needs at least "
            f"{needed}{why}."
        )


def _plan(config: CorpusConfig, text: TokenisedText, chosen: np.ndarray, split: str, length: int) -> np.ndarray:
    """The samples of one split and length, all passes together, shuffled once."""
    passes = config.duplicates if split == "train" else 1
    plan = np.concatenate(
        [
            plan_samples(
                text,
                chosen,
                length=length,
                next_sentence=config.next_sentence,
                short_sequence_probability=config.short_sequence_probability,
                seed=config.seed,
                duplicate=duplicate,
            )
            for duplicate in range(passes)
        ]
    )
    return generator(config.seed, f"shuffle {split}", length).permutation(plan)


def _track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Pass items on under a progress bar; without a terminal, one line."""
    if not sys.stderr.isatty():
        _say(description)
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=description)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    """Run `earlybert prepare` and print what was made.

    Args:
        argv: The arguments after `prepare`.

    Raises:
        CorpusError: An argument, the text or the directory is wrong.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(
        prog="earlybert prepare",
        description="Make a corpus of samples from text. Lists are written '[128,512]' or --files+ ONE --files+ TWO.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--out", type=Path, required=True, help="new or empty directory for the corpus")
    parser.add_class_arguments(CorpusConfig, as_group=False)
    try:
        options = parser.parse_args(argv)
    except ArgumentError as error:
        raise CorpusError(" ".join(str(error).split())) from None
    fields = {name: value for name, value in options.items() if name not in ("config", "out")}
    _print_summary(prepare(CorpusConfig(**fields), options.out))


def _print_summary(corpus: Corpus) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *corpus.manifest["counts"])
    for name in ("documents", "sentences", "tokens"):
        table.add_row(name, *(f"{counts[name]:,}" for counts in corpus.manifest["counts"].values()))
    for length in corpus.lengths:
        made = (f"{counts['samples'][str(length)]:,}" for counts in corpus.manifest["counts"].values())
        table.add_row(f"samples of length {length}", *made)
    console = Console()
    console.print(table)
    console.print(f"vocabulary: {corpus.vocab_size:,} tokens")
    cross_entropy, entropy = corpus.manifest["unigram_cross_entropy"], corpus.manifest["unigram_entropy"]
    console.print(f"unigram cross-entropy of the validation text: {cross_entropy:.3f} nats a token")
    console.print(f"(its own unigram entropy: {entropy:.3f})")
    console.print(f"corpus: {corpus.directory}", soft_wrap=True)
