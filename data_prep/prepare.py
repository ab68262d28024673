"""Text in, corpus directory out; complete or absent."""

import shlex
import shutil
from pathlib import Path

from earlybert.core.errors import UserError
from earlybert.core.locks import sole_use
from earlybert.core.progress import say
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.samples.manifest import NAME
from earlybert.data_prep.steps.preparation import Preparation, unfinished_config, work_folder
from earlybert.data_prep.steps.same_corpus import require_same, require_unchanged
from earlybert.data_prep.workers import Workers


def prepare(config: CorpusConfig, directory: Path, *, workers: int = 1, dask: str | None = None) -> Corpus:
    """Make a corpus, or open it if the directory already holds one of the same configuration.

    Unfinished work lies in `directory` with `.partial` added to its name, and is taken up when the same corpus is
    asked for again. The bytes of the corpus depend on the configuration and the input only.

    Args:
        config: What it is made from and how.
        directory: New or empty directory for it; its parents are made.
        workers: Processes.
        dask: Address of a Dask scheduler whose workers do the work, in place of processes.

    Raises:
        UserError: The text or the tokenizer cannot be used, or the directory holds something else.
    """
    directory = Path(directory)
    if _is_taken(directory):
        return _open_existing(config, directory)
    with Workers(workers, dask) as pool, sole_use(work_folder(directory), "out"):
        preparation = Preparation(config, directory, pool)
        try:
            vocabulary = preparation.vocabulary()
            preparation.make_units(vocabulary, 1, 1)
            preparation.merge(vocabulary)
        except BaseException:
            preparation.forget_unless_begun()
            raise
    return Corpus.open(directory)


def prepare_part(
    config: CorpusConfig, directory: Path, part: int, parts: int, *, workers: int = 1, dask: str | None = None
) -> None:
    """Do one of several parts of the reading and tokenising, which may run at the same time; then comes `merge`.

    Args:
        config: The same for all parts.
        directory: The same for all parts, on a file system that all see.
        part: Which part, from 1 to `parts`.
        parts: Number of parts.
        workers: Processes.
        dask: Address of a Dask scheduler whose workers do the work, in place of processes.

    Raises:
        UserError: As for `prepare`.
    """
    if not 1 <= part <= parts:
        raise UserError(f"part is {part}/{parts}, but must be from 1/{parts} to {parts}/{parts}.")
    directory = Path(directory)
    if _is_taken(directory):
        _open_existing(config, directory)
        return
    with Workers(workers, dask) as pool:
        preparation = Preparation(config, directory, pool)
        done = preparation.make_units(preparation.vocabulary(), part, parts)
    then = shlex.join(["earlybert", "prepare", "merge", str(directory)])
    say(f"Part {part}/{parts} is done ({done} units); after all parts: {then}")


def merge(directory: Path, *, workers: int = 1, dask: str | None = None) -> Corpus:
    """Make a corpus of which all parts are prepared.

    Raises:
        UserError: Parts are missing, or the corpus cannot be made.
    """
    directory = Path(directory)
    if (directory / NAME).is_file():
        say(f"{directory} already exists.")
        return Corpus.open(directory)
    config = unfinished_config(directory)
    with sole_use(work_folder(directory), "out"), Workers(workers, dask) as pool:
        preparation = Preparation(config, directory, pool)
        preparation.merge(preparation.vocabulary())
    return Corpus.open(directory)


def _is_taken(directory: Path) -> bool:
    """Whether anything is there; raises UserError for an empty folder that no other can take the place of."""
    if not directory.exists():
        return False
    if not directory.is_dir() or any(directory.iterdir()):
        return True
    is_current = directory.samefile(Path.cwd())
    if is_current or directory.is_mount():
        what = "the current folder" if is_current else "a mount point"
        raise UserError(f"out is {directory}, {what}, which cannot become a corpus; name a folder in it.")
    return False


def _open_existing(config: CorpusConfig, directory: Path) -> Corpus:
    if not (directory / NAME).is_file():
        raise UserError(f"{directory} exists and is not a corpus; name a new or an empty directory.")
    corpus = Corpus.open(directory)
    require_same(config, corpus.manifest["config"], f"{directory} holds a corpus")
    require_unchanged(config, corpus.manifest, directory)
    shutil.rmtree(work_folder(directory), ignore_errors=True)
    say(f"{directory} already exists.")
    return corpus
