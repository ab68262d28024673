"""Signals to runs, as schedulers and impatient people send them."""

import itertools
import signal
import subprocess
import time
from pathlib import Path

import psutil


def rank_process(launcher: int, rank: int) -> psutil.Process:
    """The process of a rank, which is the launcher itself when there is none."""
    everyone = [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]
    ranks = [process for process in everyone if process.environ().get("RANK") == str(rank)]
    return ranks[-1] if ranks else everyone[0]


def signal_until_gone(process: psutil.Process) -> None:
    """SIGTERM and SIGUSR1 in turn, every few milliseconds, as long as the process is there."""
    for number in itertools.cycle((signal.SIGTERM, signal.SIGUSR1)):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return
        time.sleep(0.003)


def end_under_signals(process: subprocess.Popen[str], run_dir: Path, rank: int = 0) -> str:
    """Lets a run end; from when it is done until its rank is gone, that gets signals. Returns the output."""
    while process.poll() is None and not (run_dir / "DONE").is_file():
        time.sleep(0.003)
    if process.poll() is None:
        signal_until_gone(rank_process(process.pid, rank))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output
