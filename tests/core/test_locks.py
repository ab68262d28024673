"""One program at a time in one folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from earlybert.core import locks
from earlybert.core.errors import UserError
from earlybert.core.locks import LOCK, sole_use

# Holds a folder; a forked child lives on when it is killed, as workers do for a moment.
HOLDER = """
import os, sys, time
from pathlib import Path
from earlybert.core.locks import sole_use
with sole_use(Path(sys.argv[1]), "run-dir"):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"SLURM_JOB_ID": "4711"},
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_program_is_told_who_is_there(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    there = rf"process {holder.pid} on {socket.gethostname()} \(job 4711\)"
    try:
        with pytest.raises(UserError, match=f"run-dir is .*, which {there} is using"), sole_use(tmp_path, "run-dir"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_killed_holder_is_no_holder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """At once, though its worker is still there."""
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with sole_use(tmp_path, "run-dir"):
        assert time.monotonic() - began < 10
    os.killpg(holder.pid, signal.SIGKILL)


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sole_use(tmp_path / "new", "run-dir"):
        assert json.loads((tmp_path / "new" / LOCK).read_text())["process"] == os.getpid()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []  # nothing had come into the folder that was made for it
    with pytest.raises(RuntimeError), sole_use(tmp_path / "used" / "run", "run-dir"):
        (tmp_path / "used" / "run" / "file").touch()
        raise RuntimeError
    assert (tmp_path / "used" / "run" / LOCK).read_text() == ""


@pytest.mark.parametrize("alive", [True, False])
def test_a_holder_on_another_machine_is_waited_for(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose lock this machine does not see, as on some shared file systems."""
    monkeypatch.setattr(locks, "DEAD", 1.0)
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "node-7", "process": 5, "job": None}))
    beats = "import os, sys, time\nfor _ in range(100):\n    os.utime(sys.argv[1])\n    time.sleep(0.05)"
    other = subprocess.Popen([sys.executable, "-c", beats if alive else "", str(path)])
    try:
        if alive:
            with pytest.raises(UserError, match="process 5 on node-7 is using"), sole_use(tmp_path, "run-dir"):
                pass
        else:
            with sole_use(tmp_path, "run-dir"):
                assert json.loads(path.read_text())["host"] == socket.gethostname()
            assert "process 5 on node-7 has given no sign of life" in capsys.readouterr().err
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_the_signs_of_life_tell(
    refusal: int, alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre mounted without flock refuses every lock, NFS without its lock service too; here on one machine."""

    def refuse(*_: Any) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "DEAD", 1.0)
    if alive:
        with sole_use(tmp_path, "run-dir"):
            there = f"process {os.getpid()} on {socket.gethostname()}.* is using"
            with pytest.raises(UserError, match=there), sole_use(tmp_path, "run-dir"):
                pass
        return
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "process": 5, "job": None}))
    with sole_use(tmp_path, "run-dir"):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    with sole_use(tmp_path, "run-dir"):
        os.utime(tmp_path / LOCK, (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
