"""Trainings inside the process of the tests: starting another one and importing DeepSpeed takes five seconds.

What a run changes for its process is put back. The process group of one rank stays, for all of them.
"""

import contextlib
import gc
import io
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from earlybert.pretrain.train.stopping import SIGNALS

LONGEST_END = 60


@contextlib.contextmanager
def settings_put_back() -> Iterator[None]:
    """The environment, the signal handlers, PyTorch's settings and what `unittest.mock` has replaced."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    try:
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"), warnings.catch_warnings():
            yield
    finally:
        mock.patch.stopall()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)


def train_here(cwd: Path, *arguments: str, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
    """`earlybert train` in a folder; exit status and output as another process would have them.

    Args:
        cwd: The current folder meanwhile.
        arguments: Of the command.
        prepare: What to do before, to make something go wrong; what it starts of `unittest.mock` is undone.
    """
    return run_here(cwd, "train", *arguments, prepare=prepare)


def run_here(cwd: Path, command: str, *arguments: str, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
    """`earlybert COMMAND`, as in `train_here`."""
    from earlybert.core import cli

    output, status, threads = io.StringIO(), 0, threading.enumerate()
    with settings_put_back(), contextlib.chdir(cwd):
        if prepare is not None:
            prepare()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                cli.main([command, *arguments])
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else int(left.code is not None)
            except Exception:
                traceback.print_exc(file=output)
                status = 1
    # What is still being written is written before a process ends.
    gc.collect()
    for thread in threading.enumerate():
        if thread not in threads and not thread.daemon:
            thread.join(LONGEST_END)
    return status, output.getvalue()
