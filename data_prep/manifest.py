"""The manifest of a corpus directory: what is in it, and that it is all there, unchanged."""

import hashlib
import json
from pathlib import Path
from typing import Any

from earlybert.data_prep.errors import CorpusError

FORMAT = "earlybert-corpus/1"
NAME = "manifest.json"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, content: dict[str, Any]) -> None:
    """Write the manifest with the size and SHA-256 of every file in the directory; to be done last."""
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"format": FORMAT, **content, "files": files}, indent=2, ensure_ascii=False)
    (directory / NAME).write_text(text + "\n", encoding="utf-8", errors="replace")


def read_manifest(directory: Path, *, verify_checksums: bool) -> dict[str, Any]:
    """Read the manifest and check that every file is there with its size, and if asked with its SHA-256.

    Raises:
        CorpusError: Something is missing or differs; the message names the file.
    """
    path = directory / NAME
    if not path.is_file():
        raise CorpusError(f"{path} is missing, so {directory} is no complete corpus; make one with earlybert prepare.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path} is damaged ({error}); prepare the corpus again.") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise CorpusError(f"{path} has the format {found!r}, but this version reads {FORMAT!r}.")
    for name, expected in manifest["files"].items():
        _check_file(directory / name, expected, verify_checksums)
    return manifest


def _check_file(path: Path, expected: dict[str, Any], verify_checksum: bool) -> None:
    if not path.is_file():
        raise CorpusError(f"{path} is missing, but the manifest lists it; prepare the corpus again.")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise CorpusError(
            f"{path} has {size} bytes, but the manifest says {expected['bytes']}; prepare the corpus again."
        )
    if verify_checksum and sha256(path) != expected["sha256"]:
        raise CorpusError(f"{path} is damaged: its SHA-256 is not the manifest's; prepare the corpus again.")
