"""One program at a time in one folder, on one machine or on several that share it."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from earlybert.core.errors import UserError
from earlybert.core.progress import say

LOCK = ".in-use"
# How often a holder gives a sign of life, and after how long without one it is taken for dead, in seconds.
BEAT, DEAD = 10.0, 45.0
# What file systems answer that know no locks: Lustre mounted without flock, NFS without its lock service, others.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def sole_use(folder: Path, option: str) -> Iterator[None]:
    """Keeps other programs out of a folder until the block ends, or this process does.

    The operating system's lock tells whether another process is there. Some shared file systems keep that lock to one
    machine, and some have none. So the file also says who holds it, and its time is a sign of life: where no lock could
    tell, and the last holder did not end well, this waits until it has been silent for `DEAD` seconds.

    Raises UserError, which calls the folder `option`, where another program uses it or it cannot be written to.
    """
    path = folder / LOCK
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{option} is {folder}, which cannot be written to ({error.strerror})") from None
    ended = threading.Event()
    try:
        _take(file, path, option)
        own = {"host": socket.gethostname(), "process": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        _write(file, json.dumps(own))
        threading.Thread(target=_beat, args=(file, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            _write(file, "")
            _remove_unused(path, made)
    finally:
        os.close(file)  # and with it the lock


def _take(file: int, path: Path, option: str) -> None:
    in_use = f"{option} is {path.parent}, which {{}} is using; wait for it, or name another one"
    locked = True
    # A lock of the process: unlike flock's, forked workers that live a little longer do not hold it.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(in_use.format(_words(_holder(file)))) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        locked = False
    if not path.is_file() or path.stat().st_ino != os.fstat(file).st_ino:
        # Whoever held it has removed the folder.
        raise UserError(in_use.format(_words({})))
    holder = _holder(file)
    if not holder or (locked and holder.get("host") == socket.gethostname()):
        return
    seen = os.fstat(file).st_mtime
    if (silent := time.time() - seen) < DEAD:
        say(f"{path.parent} was last used by {_words(holder)}; waiting to see whether that is alive")
        time.sleep(DEAD - max(0.0, silent))
    if os.fstat(file).st_mtime != seen:
        raise UserError(in_use.format(_words(holder)))
    say(f"{_words(holder)} has given no sign of life for {DEAD:.0f} seconds; {path.parent} is taken over from it")


def _remove_unused(path: Path, made: list[Path]) -> None:
    """Removes folders that were made for the lock, where nothing else has come into them."""
    with suppress(OSError):
        if made and [*path.parent.iterdir()] == [path]:
            path.unlink()
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def _beat(file: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(file)


def _write(file: int, text: str) -> None:
    with suppress(OSError):  # a full disk is no reason to stop here
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _holder(file: int) -> dict[str, object]:
    """What the last holder said of itself; nothing where it ended well."""
    with suppress(OSError, ValueError):
        found = json.loads(os.pread(file, 4096, 0))
        return found if isinstance(found, dict) else {}
    return {}


def _words(holder: dict[str, object]) -> str:
    job = f" (job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('process')} on {holder.get('host')}{job}" if holder else "another process"
