"""Ranks: how they find each other, and the few things they say to each other outside DeepSpeed."""

import atexit
import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from earlybert.core.devices import device_type
from earlybert.core.errors import UserError
from earlybert.core.ranks import local_world_size, rank, world_size

Result = TypeVar("Result")

# How long ranks wait for one another, in minutes, unless DEEPSPEED_TIMEOUT says. Rank 0 alone reads the corpus before
# it joins, and checkpoints later: from a slow shared disk that can take longer than DeepSpeed's 10 minutes.
PATIENCE = 30


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _device_number(local_rank: int, devices: int) -> int:
    """The number of this rank's GPU; raises UserError where ranks would share one, which NCCL does not allow."""
    if devices == 1:
        # With one visible device a task, every local rank's device is number 0.
        return 0
    if local_rank >= devices:
        raise UserError(
            f"local rank {local_rank} has no GPU of its own: PyTorch finds {devices} here; start at most {devices} "
            "ranks on this machine"
        )
    return local_rank


def start() -> torch.device:
    """Joins the process group that torchrun, the deepspeed launcher or srun describes, else one of a single rank.

    Returns this rank's device.
    """
    if world_size() == 1:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        os.environ.update(alone | os.environ)
    # DeepSpeed reads this variable, too.
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if device_type() == "cuda":
        local_rank = _device_number(local_rank, torch.cuda.device_count())
        os.environ["LOCAL_RANK"] = str(local_rank)
        torch.cuda.set_device(local_rank)
    import deepspeed

    # Its notes repeat on every rank and for every stage; errors still come through.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device_type() == "cpu":
        # Training never uses this operation, and DeepSpeed would compile it for most of a minute. (On a GPU it compiles
        # none, but to fill this table it would try what it could compile, and warn.)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        from deepspeed.accelerator import cuda_accelerator

        # With this library it asks for a GPU's memory by the numbers in CUDA_VISIBLE_DEVICES, and fails where that has
        # UUIDs. Without it PyTorch is asked.
        cuda_accelerator.pynvml = None
    minutes = int(os.environ.get("DEEPSPEED_TIMEOUT", PATIENCE))
    deepspeed.init_distributed(verbose=False, timeout=timedelta(minutes=minutes))
    if device_type() == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))
    return torch.device("cpu")


@atexit.register
def _leave() -> None:
    """Ends gloo's threads while Python still runs, whatever ends the process.

    Such a thread asks for Python's lock to let go of a tensor. Once Python is shutting down, that ends the thread, and
    with it the process, with status -6. NCCL's groups stay: to end one may mean to wait for ranks that never come,
    where an error ended only this one.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == torch.distributed.Backend.GLOO:
        torch.distributed.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over all ranks, on every rank."""
    torch.distributed.all_reduce(values)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank. A rank that is alone needs no process group for it."""
    if world_size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def on_rank_0(function: Callable[[], Result]) -> Result:
    """What the function returns on rank 0, on every rank; where it fails for the user to put right, all ranks fail so.

    Without this the others would wait for an answer that never comes.
    """
    result, error = None, None
    if rank() == 0:
        try:
            result = function()
        except (UserError, OSError) as caught:
            error = str(caught)
    result, error = broadcast_object((result, error))
    if error is not None:
        raise UserError(error)
    return result


def on_any_rank(*flags: bool) -> list[bool]:
    """For each flag whether it is set on at least one rank; one all-reduce."""
    counts = sum_over_ranks(torch.tensor([int(flag) for flag in flags], device=device_type()))
    return [count > 0 for count in counts.tolist()]


def barrier() -> None:
    """Waits for all ranks. NCCL's own has to guess a rank's GPU, and warns of that."""
    on_any_rank(False)
