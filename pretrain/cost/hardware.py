"""What the device at hand is called, which precision it takes, and what it can do at most."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from earlybert.core import ranks
from earlybert.core.devices import half_precision
from earlybert.core.errors import UserError
from earlybert.pretrain.cost.gpus import FAMILIES, family

# The control groups of this process, and where all of them are mounted.
OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def device_name(device: torch.device) -> str:
    """The GPU's own name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def free_memory(device: torch.device) -> float:
    """Bytes that a GPU has free; of a CPU's memory, this rank's share of what is free and what the process may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    return min([free, *memory_limits()]) / ranks.local_world_size()


def memory_limits() -> list[int]:
    """Bytes that the process may take by each of its control groups that sets a limit: its own and those around it."""
    found = []
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []:
        _, controllers, path = line.split(":", maxsplit=2)
        # Version 2 names no controllers; version 1 has a tree for each.
        if controllers not in ("", "memory"):
            continue
        root, name = (CGROUPS / controllers, "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        group = root / path.lstrip("/")
        # A container may see the path that its group has outside; then only the root is there.
        files = [folder / name for folder in (group, *group.parents) if folder.is_relative_to(root)]
        stated = [file.read_text().strip() for file in files if file.is_file()]
        found += [int(number) for number in stated if number.isdecimal()]
    return found


def device_precision(wanted: str, device: torch.device) -> str:
    """fp16 on sm_70, bf16 on sm_80 and newer, fp32 on CPU, unless another is wanted; raises UserError."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision is fp16, which CPUs have no fast path for; it must be fp32, bf16 or auto")
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "fp32"
    return "bf16" if half_precision(device) == torch.bfloat16 else "fp16"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that one rank could reach at best: the data sheet's, else what is measured."""
    known = family(device_name(device))
    return FAMILIES[known].tflops * 1e12 if known and dtype != torch.float32 else measured_peak(device, dtype)


# Seconds of products after which no more are tried.
LONG_ENOUGH = 2.0


def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second of the best of several large matrix products, with as many threads as training uses.

    Of fewer where they take long: a CPU that has no bf16 products of its own needs seconds for one.
    """
    size = 8192 if device.type == "cuda" else 1024
    # Random numbers: a GPU draws less power, and is faster, on constant ones.
    matrix = torch.randn(size, size, device=device).to(dtype)
    seconds: list[float] = []
    while len(seconds) < 8 and sum(seconds) < LONG_ENOUGH:
        began = clock()
        float((matrix @ matrix)[0, 0])  # reading one element waits for the device
        seconds.append(clock() - began)
    return 2.0 * size**3 / min(seconds)
