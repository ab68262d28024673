"""Starts the ranks of `lamb_worker`, once per number of ranks and test session, and collects what they saw."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, free_port
from tests.kernels import emulated
from tests.kernels.lamb_worker import CASES, Seen


def launches(wanted: Callable[[str], bool]) -> pytest.MarkDecorator:
    """Parametrizes with every number of ranks of the cases with such names; three and four take long."""
    marks = {3: pytest.mark.slow, 4: pytest.mark.slow}
    chosen = [
        pytest.param(name, size, marks=marks.get(size, ()))
        for name, case in CASES.items()
        for size in case.world_sizes
        if wanted(name)
    ]
    return pytest.mark.parametrize(("name", "world_size"), chosen)


def launch(world_size: int) -> list[dict[str, Seen]]:
    """Observe all cases on so many ranks, once per test session; what each rank saw, by case."""
    failures, seen = _train_on_ranks(world_size)
    assert not failures, failures
    return seen


@functools.cache
def _train_on_ranks(world_size: int) -> tuple[str, list[dict[str, Seen]]]:
    """What failed ranks wrote last, and what the ranks saw when none failed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"rank{rank}.pt") for rank in range(world_size)]
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            "WORLD_SIZE": str(world_size),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        kernels = [] if emulated.MISSING else [str(emulated.library_path())]
        ranks = []
        for rank, output in enumerate(outputs):
            with output.with_suffix(".log").open("w") as log:
                script = "from tests.kernels.lamb_worker import main; main()"
                command = [sys.executable, "-c", script, str(output), *kernels]
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment | own, stdout=log, stderr=log))
        deadline = time.monotonic() + 300
        # When one rank has failed the others wait for it in a collective.
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        codes = [rank.poll() for rank in ranks]
        for process in ranks:
            process.kill()
            process.wait()
        if any(code != 0 for code in codes):
            logs = "\n".join(output.with_suffix(".log").read_text()[-3000:] for output in outputs)
            return f"Exit codes {codes} (None: killed).\n{logs}", []
        return "", [torch.load(output, weights_only=False) for output in outputs]
