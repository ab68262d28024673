"""What accelerators can do at most: data sheets, and a measurement where there is none."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from earlybert.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU, by its data sheet.

    Args:
        memory_gb: device memory, GB (1e9 bytes).
        tflops: dense fp16 (and, where it has it, bf16) matrix products with fp32 accumulation, TFLOP/s.
        bandwidth_gb: device memory, GB/s.
        link_gb: to the other GPUs of a node, GB/s in one direction.
        gemm_efficiency: share of the peak that BERT's matrix products reach. Published runs agree with 0.60 on V100
            and 0.65 on A100; the others are assumptions.
        bandwidth_efficiency: share of the memory bandwidth that elementwise kernels reach.
    """

    memory_gb: float
    tflops: float
    bandwidth_gb: float
    link_gb: float
    gemm_efficiency: float
    bandwidth_efficiency: float


GPUS = {
    "V100-16GB": Gpu(
        memory_gb=17, tflops=125, bandwidth_gb=900, link_gb=150, gemm_efficiency=0.6, bandwidth_efficiency=0.8
    ),
    "V100-32GB": Gpu(
        memory_gb=34, tflops=125, bandwidth_gb=900, link_gb=150, gemm_efficiency=0.6, bandwidth_efficiency=0.8
    ),
    "A100-40GB": Gpu(
        memory_gb=42, tflops=312, bandwidth_gb=1555, link_gb=300, gemm_efficiency=0.65, bandwidth_efficiency=0.85
    ),
    "A100-80GB": Gpu(
        memory_gb=85, tflops=312, bandwidth_gb=2039, link_gb=300, gemm_efficiency=0.65, bandwidth_efficiency=0.85
    ),
    "H100-80GB": Gpu(
        memory_gb=85, tflops=989, bandwidth_gb=3350, link_gb=450, gemm_efficiency=0.6, bandwidth_efficiency=0.9
    ),
    "H200-141GB": Gpu(
        memory_gb=150, tflops=989, bandwidth_gb=4800, link_gb=450, gemm_efficiency=0.6, bandwidth_efficiency=0.9
    ),
}


def device_name(device: torch.device) -> str:
    """The GPU's own name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def device_precision(wanted: str, device: torch.device) -> str:
    """fp16 on sm_70, bf16 on sm_80 and newer, fp32 on CPU, unless another is wanted; raises UserError."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision is fp16, which CPUs have no fast path for; it must be fp32, bf16 or auto")
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that one rank could reach at best: the data sheet's, else what is measured."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for family in GPUS:
            if family.split("-")[0] in name:
                return GPUS[family].tflops * 1e12
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second of the best of several large matrix products, with as many threads as training uses."""
    size = 8192 if device.type == "cuda" else 1024
    # Random numbers: a GPU draws less power, and is faster, on constant ones.
    matrix = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(8):
        began = clock()
        float((matrix @ matrix)[0, 0])  # reading one element waits for the device
        best = min(best, clock() - began)
    return 2.0 * size**3 / best
