"""Where a program runs: what has to be known to run it again."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("earlybert", "torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Command line, time, machine, versions, and the commit of the checkout that runs, if it is one."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "commit": _commit(),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """With "+" behind it where files differ from it; None where there is no checkout, or no git."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    # Without --exclude it would name the nearest tag.
    described = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
