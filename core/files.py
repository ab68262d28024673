"""Files and folders that are either complete or absent, and checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from earlybert.core.errors import UserError, WriteError
from earlybert.core.paths import did_you_mean

# What the mode of a new file leaves out. To read it is to set it for a moment, so it is read before there are threads.
UMASK = os.umask(0o077)
os.umask(UMASK)


def canonical_json(content: Any) -> str:
    """One text for one content: sorted keys, no white space."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def content_hash(content: Any) -> str:
    """SHA-256 of the canonical JSON text."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as manifests state them."""
    return {"size": path.stat().st_size, "sha256": file_hash(path)}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path` when the block ends well, so that the file is complete or absent.

    Raises WriteError where the file cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_to_readers(path: Path) -> None:
    """Gives a file, or all files below a folder, the mode of any new file; safetensors makes them its owner's alone."""
    for file in (path, *path.rglob("*")):
        if file.is_file():
            with suppress(OSError):  # some file systems have no modes
                file.chmod(0o666 & ~UMASK)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well; if another process was quicker, its stays.

    Raises WriteError where the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not path.exists():
            temporary.rename(path)
    except OSError as error:
        if not path.exists():
            raise WriteError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, complete or absent; raises WriteError."""
    with whole_file(path) as temporary:
        # Names of files may hold bytes that are no UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, content: Any) -> None:
    """Writes readable JSON, complete or absent; equal content gives equal bytes. Raises WriteError."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the library would take the last of several values."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f'key "{twice}" appears twice; keep one of them')
    return content


@contextmanager
def reading(path: Path, what: str = "text") -> Iterator[None]:
    """Raises UserError where the block finds that the file cannot be read, or is not in UTF-8; it must be `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}){did_you_mean(path)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; it must be {what}") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file; a missing or malformed one is the user's to put right."""
    with reading(path, "a JSON file"):
        text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: is not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is JSON that cannot be read ({error})") from None
