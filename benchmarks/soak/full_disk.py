"""Disks that can be full for a while. Linux only."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import psutil

IN_NAMESPACE = "FAULT_SOAK_IN_NAMESPACE"


def enter_namespace() -> bool:
    """Starts this script again in a user namespace where it may mount; returns whether it is in one.

    What is mounted there nobody else sees, and it is gone when the script ends.
    """
    if IN_NAMESPACE in os.environ:
        return True
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    trial = [*unshare, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True).returncode:
        return False
    os.environ[IN_NAMESPACE] = "1"
    os.execvp("unshare", [*unshare, sys.executable, *sys.argv])


class Disk(Protocol):
    """Filled and freed for the given processes."""

    def fill(self, processes: list[psutil.Process]) -> None: ...

    def free(self, processes: list[psutil.Process]) -> None: ...


class SmallDisk:
    """A tmpfs of `size` bytes on an empty folder, whose free room a file takes: writing says ENOSPC."""

    def __init__(self, folder: Path, size: int) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
        self._filler = folder / "filler"

    def fill(self, processes: list[psutil.Process]) -> None:
        """Takes what is free now; what a run frees afterwards needs another call."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self, processes: list[psutil.Process]) -> None:
        self._filler.unlink()


class SizeLimit:
    """No file of the processes may grow beyond `size` bytes: writing more says EFBIG."""

    def __init__(self, size: int) -> None:
        self._size = size

    def fill(self, processes: list[psutil.Process]) -> None:
        self._limit(processes, self._size)

    def free(self, processes: list[psutil.Process]) -> None:
        self._limit(processes, psutil.RLIM_INFINITY)

    def _limit(self, processes: list[psutil.Process], size: int) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
                process.rlimit(psutil.RLIMIT_FSIZE, (size, hard))
