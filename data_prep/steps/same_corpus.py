"""Whether a corpus that is there, or begun, is the one that is asked for."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.core.files import file_hash
from earlybert.core.paths import did_you_mean
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.tokens.tokenizer import local_tokenizer, tokenizer_files


def require_same(config: CorpusConfig, existing: dict[str, Any], what: str) -> None:
    """Raise UserError that names the first field in which a configuration differs from the one that exists."""
    wanted, defaults = config.as_dict(), asdict(CorpusConfig())
    for name, value in asdict(config).items():
        if existing.get(name) != wanted.get(name):
            there = existing.get(name, defaults[name])
            raise UserError(f"{what} with {name} {there!r}, not {value!r}; name another directory or remove it.")


def require_unchanged(config: CorpusConfig, manifest: dict[str, Any], directory: Path) -> None:
    """Raise UserError where the vocabulary's files have changed since; corpora of older versions do not know."""
    known = manifest["vocabulary"].get("given_sha256", {})
    for name, found in given_hashes(config).items():
        before = known.get(name, found)
        if isinstance(before, str):  # an older version, which looked at the file that is named and no other
            before = found | {Path(getattr(config, name)).name: before}
        if changed := sorted(file for file, _ in before.items() ^ found.items()):
            raise UserError(
                f"{directory} holds a corpus with the {name} {getattr(config, name)!r} as it was before {changed[0]} "
                "was changed; name another directory or remove it."
            )


def given_hashes(config: CorpusConfig) -> dict[str, dict[str, str]]:
    """SHA-256 of the files that the vocabulary is from, as far as they are on this disk, by field and by name."""
    hashes = {}
    if config.tokenizer and Path(config.tokenizer).exists():
        hashes["tokenizer"] = file_hashes(tokenizer_files(Path(local_tokenizer(config.tokenizer))), "tokenizer")
    if config.add_tokens and (added := Path(config.add_tokens)).is_file():
        hashes["add_tokens"] = file_hashes([added], "add_tokens")
    return hashes


def file_hashes(files: Iterable[Path], field: str) -> dict[str, str]:
    """SHA-256 of files by their names; raises UserError, which names the field, where one cannot be read."""
    hashes = {}
    for file in files:
        try:
            hashes[file.name] = file_hash(file)
        except OSError as error:
            raise UserError(f"{field}: {file} cannot be read ({error.strerror}){did_you_mean(file)}") from None
    return hashes
