"""Files that are either complete or absent, and checksums."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from earlybert.pretrain.errors import UserError


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


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name in the same folder, flushes to disk, renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes readable JSON, atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; a missing or malformed one is the user's to put right."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text, expected a JSON file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: is not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is JSON that cannot be read ({error})") from None
