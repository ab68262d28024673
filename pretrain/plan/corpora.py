"""The corpus of a run: the prepared folder it names, else one prepared from the recipe, once, under `corpora/`."""

import dataclasses
import time
from pathlib import Path

from earlybert.core import ranks
from earlybert.core.errors import UserError
from earlybert.core.files import content_hash
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.sources.input_files import files_of
from earlybert.pretrain.plan.recipe import Recipe

CORPORA = Path("corpora")
# In a run directory.
KEPT = "corpus"


def corpus_directory(recipe: Recipe) -> Path:
    """Where the recipe's corpus lies or will lie."""
    if recipe.data:
        return Path(recipe.data)
    config = corpus_config(recipe)
    return CORPORA / f"{config.source}-{_identity(config)[:12]}"


def corpus_config(recipe: Recipe) -> CorpusConfig:
    """How the recipe's corpus is prepared: a network that has a tokenizer keeps it."""
    return dataclasses.replace(recipe.corpus, tokenizer=recipe.corpus.tokenizer or recipe.initial)


def open_corpus(recipe: Recipe) -> Corpus:
    """Opens the corpus; rank 0 prepares it first where needed, which the other ranks wait for."""
    directory = corpus_directory(recipe)
    if recipe.data:
        try:
            return Corpus.open(directory, verify_checksums=ranks.rank() == 0)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; if it was moved, name its new place with --data") from None
    if ranks.rank() == 0:
        # Imported here: reading and tokenising bring libraries that training does not need.
        from earlybert.data_prep.prepare import prepare

        return prepare(corpus_config(recipe), directory)
    while not (directory / "manifest.json").is_file():
        time.sleep(1)
    return Corpus.open(directory)


def run_corpus(run_dir: Path, recipe: Recipe) -> Corpus:
    """What a run keeps of its corpus (no samples), wherever that is now; of runs of older versions the corpus itself.

    Raises UserError.
    """
    kept = run_dir / KEPT
    return Corpus.open_kept(kept) if kept.is_dir() else Corpus.open(corpus_directory(recipe))


def run_samples(run_dir: Path, recipe: Recipe) -> Corpus:
    """A run's corpus with its samples; raises UserError where that is gone, or another one lies in its place."""
    corpus = Corpus.open(corpus_directory(recipe))
    if corpus.fingerprint != run_corpus(run_dir, recipe).fingerprint:
        raise UserError(f"{corpus.directory}: is not the corpus that {run_dir} was trained on; put that one back")
    return corpus


def _identity(config: CorpusConfig) -> str:
    """Changes with the recipe's corpus section and with the files that it names."""
    files = {file for source in config.sources for name in source.files for file in files_of(name)}
    files |= {Path(name) for name in (config.tokenizer, config.add_tokens) if name and Path(name).is_file()}
    states = sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return content_hash([config.as_dict(), states])
