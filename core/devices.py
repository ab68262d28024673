"""The device that a process computes on, and what it is told once before it computes."""

import ctypes
import os

import torch

from earlybert.core.errors import UserError

ACCELERATORS = ("cpu", "cuda")
# Of true fp32 products of this size; bf16 is at 2e-3.
LARGEST_FP32_ERROR = 1e-5
# Options of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def device_type() -> str:
    """ "cuda" or "cpu": where this process computes, as DS_ACCELERATOR says; unset, it is set to what is found here.

    DeepSpeed goes by the same variable. Raises UserError for another value, and for cuda where there is no GPU.
    """
    name = os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if name not in ACCELERATORS:
        raise UserError(f"DS_ACCELERATOR is {name!r}; it must be cpu or cuda, or not be set")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("DS_ACCELERATOR is cuda, but PyTorch finds no GPU here; set it to cpu, or do not set it")
    return name


# DeepSpeed reads the variable when it is imported, and remarks upon it where there is no GPU.
device_type()


def half_precision(device: torch.device) -> torch.dtype:
    """The 16-bit numbers to compute with: bf16, or fp16 on GPUs before sm_80, which are fast at nothing else."""
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if old else torch.bfloat16


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_matmul_precision(wanted: str, device: torch.device) -> None:
    """ "auto" takes oneDNN's fp32 kernels, about twice as fast, on CPUs where they are found to compute true fp32."""
    torch.set_float32_matmul_precision("medium" if wanted == "auto" else wanted)
    if wanted == "auto" and (device.type != "cpu" or matmul_error() > LARGEST_FP32_ERROR):
        torch.set_float32_matmul_precision("highest")


def matmul_error() -> float:
    """Largest error of an fp32 matrix product on the CPU, relative to the largest element; "medium" may mean bf16."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    return float((left @ right - exact).abs().max() / exact.abs().max())


def keep_freed_memory() -> None:
    """Has the C library give freed memory out again, not back to the system; no effect where it is not glibc.

    Every tensor of more than 32 MB would otherwise be made of pages that the system first fills with zeros, which takes
    longer than most operations on it.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    set_option(M_MMAP_THRESHOLD, 1 << 30)
    set_option(M_TRIM_THRESHOLD, (1 << 31) - 1)


def set_deterministic() -> None:
    """Only algorithms that give the same bits every time. To be called before anything is computed on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Of memory that is only reserved, DeepSpeed has gigabytes: to fill it takes longer than a small run.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
