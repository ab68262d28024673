"""Which rank a process is, is said in full or not at all; and how ranks leave."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from earlybert.core import distributed
from earlybert.core.errors import UserError
from earlybert.core.ranks import check_environment, rank, world_size

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, MEETING,
     {"RANK": "3", "WORLD_SIZE": "4", **MEETING}, {"DEEPSPEED_TIMEOUT": "90"}],
)  # fmt: skip
def test_one_rank_or_all_of_it(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_environment()
    assert (rank(), world_size()) == (int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK is 0 and WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT are not set"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "but MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", **MEETING}, "RANK must be below WORLD_SIZE"),
        ({"RANK": "one"}, "RANK is 'one'; it must be a number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; it must be a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'; it must be a number"),
        ({"DEEPSPEED_TIMEOUT": "1h"}, "DEEPSPEED_TIMEOUT is '1h'; it must be a number of minutes"),
        ({"DEEPSPEED_TIMEOUT": "0"}, "DEEPSPEED_TIMEOUT is '0'; it must be a number of minutes"),
    ],
)
def test_half_of_it_is_named(environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        check_environment()


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"RANK": "x"}])
def test_the_command_ends_with_one_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from earlybert.core.cli import main; main(['train'])"],
        cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_rank_with_a_gpu_asks_deepspeed_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the GPU of its number among those that it sees; which operations could be compiled is not tried.

    Memory is asked for in a way that works whatever the GPUs are called.
    """
    import deepspeed
    from deepspeed.accelerator import cuda_accelerator

    chosen: list[int] = []
    patience: list[timedelta] = []
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("DS_ACCELERATOR", "cuda")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    monkeypatch.setattr(deepspeed, "init_distributed", lambda verbose, timeout: patience.append(timeout))
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)
    monkeypatch.setattr(deepspeed.ops, "_probe_compatible_ops", lambda: pytest.fail("compilers are tried"))
    monkeypatch.setattr(cuda_accelerator, "pynvml", SimpleNamespace())
    accelerator = cuda_accelerator.CUDA_Accelerator()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937,GPU-d5ba0d6e")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert distributed.start() == torch.device("cuda", 1) and os.environ["LOCAL_RANK"] == "1"
    assert accelerator.available_memory() == 70
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "45")
    distributed.start()
    assert patience == [timedelta(minutes=30), timedelta(minutes=45)]


def test_ranks_never_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would end with "Duplicate GPU detected". Only where each rank sees one alone do all count from 0."""
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "2"), ("DS_ACCELERATOR", "cuda")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"local rank 2 has no GPU .* finds 2 here; start at most 2 ranks"):
        distributed.start()
    assert [distributed._device_number(local_rank, 1) for local_rank in range(3)] == [0, 0, 0]
    assert [distributed._device_number(local_rank, 3) for local_rank in range(3)] == [0, 1, 2]


THREADS_AT_THE_END = """
import atexit, os, time
atexit.register(lambda: print(*(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))))
from earlybert.core import distributed
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
distributed.broadcast_object("anything")
while not any("gloo" in open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")):
    time.sleep(0.01)  # a thread takes its name when it first runs
raise SystemExit(2)
"""


def test_threads_of_gloo_end_before_python_does() -> None:
    """One that is slow would otherwise end the process with -6. What is registered first runs last."""
    process = subprocess.run([sys.executable, "-c", THREADS_AT_THE_END], capture_output=True, text=True, check=False)
    assert process.returncode == 2 and process.stdout and "gloo" not in process.stdout, process.stdout + process.stderr
