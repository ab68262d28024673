"""Files that are complete or absent, and flat arrays in them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from earlybert.data_prep.errors import CorpusError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path` when the block ends well, so that the file is complete or absent.

    Raises:
        CorpusError: The file cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well; if another process was quicker, its stays.

    Raises:
        CorpusError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not path.exists():
            temporary.rename(path)
    except OSError as error:
        if not path.exists():
            raise _cannot_write(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> CorpusError:
    return CorpusError(
        f"{path} cannot be written ({error.strerror or error}); what is finished stays: make room or name another "
        "directory, and give the same command again."
    )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, complete or absent; equal content gives equal bytes."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with whole_file(path) as temporary:
        # Names of files may hold bytes that are no UTF-8.
        temporary.write_text(text + "\n", encoding="utf-8", errors="replace")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def map_array(path: Path, dtype: npt.DTypeLike) -> np.ndarray:
    """The flat array in a raw file, memory-mapped, read-only."""
    import pyarrow

    if not path.stat().st_size:
        return np.zeros(0, dtype)  # cannot be mapped
    # numpy's own would keep the file open: a large corpus has more units than a process may have open files.
    return np.frombuffer(pyarrow.memory_map(str(path)).read_buffer(), dtype)
