"""Paths that users name: what is there in place of what was looked for, and whether something can be made there."""

import os
from itertools import islice
from pathlib import Path

from earlybert.core.arguments import nearest
from earlybert.core.errors import UserError

# Kinds of folders, by a file that each has.
RUN, CORPUS, MODEL = "a run", "a prepared corpus", "a model"
KINDS = {"config.yaml": RUN, "manifest.json": CORPUS, "model.safetensors": MODEL}
# Names of one folder that are compared with a missing one, at most.
MOST_NAMES = 2000


def kind_of(path: Path) -> str | None:
    """RUN, CORPUS or MODEL; None for all else."""
    return next((kind for file, kind in KINDS.items() if (path / file).is_file()), None)


def what_is_there(path: Path) -> str:
    """For the end of an error about a path that does not hold what it must: "it is a file"."""
    if not os.path.lexists(path):
        return f"there is no such file or folder{did_you_mean(path)}"
    if not path.is_dir():
        return "it is a file"
    return f"it is {kind_of(path) or 'another folder'}"


def did_you_mean(path: Path) -> str:
    """For the end of an error about a path that is not there: the nearest one that is, if any; else nothing."""
    missing = next((part for part in (*reversed(path.parents), path) if not os.path.lexists(part)), None)
    if missing is None:
        return ""
    try:
        names = [entry.name for entry in islice(os.scandir(missing.parent), MOST_NAMES) if entry.name[0] != "."]
    except OSError:
        return ""
    close = nearest(missing.name, names)
    return f"; did you mean {missing.parent / close / path.relative_to(missing)}?" if close else ""


def require_place(folder: Path, option: str) -> None:
    """Raises UserError where no folder can be made or written to, before there is work that would be lost."""
    there = next(part for part in (folder, *folder.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise UserError(f"{option} is {folder}, which cannot be written to ({there} is a file)")
    if not os.access(there, os.W_OK | os.X_OK):
        fixed = os.statvfs(there).f_flag & os.ST_RDONLY
        reason = "lies on a read-only file system" if fixed else "belongs to somebody else"
        raise UserError(f"{option} is {folder}, which cannot be written to ({there} {reason})")
