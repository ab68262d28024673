"""The manifest of a corpus directory: what is in it, and that it is all there, unchanged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.core.files import file_hash, write_text
from earlybert.core.paths import what_is_there

FORMAT = "earlybert-corpus/2"
NAME = "manifest.json"
FIELDS = frozenset({"config", "vocabulary", "counts", "dropped", "files"})


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def write_manifest(directory: Path, content: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Write the manifest; to be done last.

    Args:
        directory: The corpus.
        content: What is in it.
        files: For every file, by its path inside, what `describe_file` says.
    """
    # Runs know a corpus by the hash of these bytes.
    text = json.dumps({"format": FORMAT, **content, "files": files}, indent=2, ensure_ascii=False)
    write_text(directory / NAME, text + "\n")


def read_manifest(directory: Path, *, check_files: bool = True) -> dict[str, Any]:
    """Read the manifest and, unless told otherwise, check that every file is there with its size.

    Raises:
        UserError: Something is missing or differs; the message names the file.
    """
    path = directory / NAME
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so {directory} is no complete corpus; {what_is_there(directory)}; make one with "
            "earlybert prepare."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the corpus again.") from None
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if written != FORMAT:
        raise UserError(f"{path} has the format {written!r}, but this version reads {FORMAT!r}; prepare it again.")
    if missing := sorted(FIELDS - manifest.keys()):
        raise UserError(f"{path} has no {missing[0]!r}; prepare the corpus again.")
    for name, expected in manifest["files"].items() if check_files else ():
        if not (file := directory / name).is_file():
            raise UserError(f"{file} is missing, but the manifest lists it; prepare the corpus again.")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise UserError(
                f"{file} has {size} bytes, but the manifest says {expected['bytes']}; prepare the corpus again."
            )
    return manifest


def damaged_files(directory: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Every file of a manifest, and whether its SHA-256 is another than the manifest's."""
    for name, expected in manifest["files"].items():
        yield name, file_hash(directory / name) != expected["sha256"]
