"""What processors can do: the one description that both cost models read, of a training step and of a layer's width."""

import re
from dataclasses import dataclass
from typing import Literal

from earlybert.kernels.sizes import STORED_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What a device computes and moves.

    Args:
        tflops: matrix products by the data sheet, TFLOP/s; on GPUs dense ones of fp16 (and, where they have it, bf16)
            with fp32 accumulation.
        bandwidth_gb: its memory's, GB/s (1e9 bytes).
        gemm_efficiency: share of the peak that BERT's matrix products reach. Published runs agree with 0.60 on V100
            and 0.65 on A100; the others are assumptions.
        bandwidth_efficiency: share of the memory bandwidth that elementwise kernels reach.
        multiprocessors: how many tiles of a matrix product are computed at once.
        tile: rows and columns of one.
        element_size: bytes of a number in training.
        stored_multiple: what the kernels round a width up to in memory.
    """

    tflops: float
    bandwidth_gb: float
    gemm_efficiency: float
    bandwidth_efficiency: float
    multiprocessors: int
    tile: tuple[int, int]
    element_size: int = 2
    stored_multiple: int = STORED_MULTIPLE

    def product_seconds(self, operations: float) -> float:
        """Of matrix products large enough to fill all multiprocessors."""
        return operations / (self.tflops * 1e12 * self.gemm_efficiency)

    def traffic_seconds(self, size: float) -> float:
        """Of reading or writing so many bytes."""
        return size / (self.bandwidth_gb * 1e9 * self.bandwidth_efficiency)


@dataclass(frozen=True, kw_only=True)
class Gpu(Processor):
    """One kind of GPU, by its data sheet.

    Args:
        memory_gb: device memory, GB.
        link_gb: to the other GPUs of a node, GB/s in one direction.
        half_precision: what precision "auto" comes to.
    """

    memory_gb: float
    link_gb: float
    half_precision: Literal["bf16", "fp16"] = "bf16"


def _v100(memory_gb: float) -> Gpu:
    return Gpu(
        memory_gb=memory_gb,
        tflops=125,
        bandwidth_gb=900,
        link_gb=150,
        half_precision="fp16",
        gemm_efficiency=0.6,
        bandwidth_efficiency=0.8,
        multiprocessors=80,
        tile=(128, 128),
    )


def _a100(memory_gb: float, bandwidth_gb: float) -> Gpu:
    return Gpu(
        memory_gb=memory_gb,
        tflops=312,
        bandwidth_gb=bandwidth_gb,
        link_gb=300,
        gemm_efficiency=0.65,
        bandwidth_efficiency=0.85,
        multiprocessors=108,
        tile=(128, 256),
    )


def _hopper(memory_gb: float, bandwidth_gb: float) -> Gpu:
    return Gpu(
        memory_gb=memory_gb,
        tflops=989,
        bandwidth_gb=bandwidth_gb,
        link_gb=450,
        gemm_efficiency=0.6,
        bandwidth_efficiency=0.9,
        multiprocessors=132,
        tile=(128, 256),
    )


GPUS = {
    "V100-16GB": _v100(memory_gb=17),
    "V100-32GB": _v100(memory_gb=34),
    "A100-40GB": _a100(memory_gb=42, bandwidth_gb=1555),
    "A100-80GB": _a100(memory_gb=85, bandwidth_gb=2039),
    "H100-80GB": _hopper(memory_gb=85, bandwidth_gb=3350),
    "H200-141GB": _hopper(memory_gb=150, bandwidth_gb=4800),
}
# Of GPUs that differ in their memory alone, the one whose speed stands for all.
FAMILIES = {
    "v100": GPUS["V100-32GB"],
    "a100": GPUS["A100-80GB"],
    "h100": GPUS["H100-80GB"],
    "h200": GPUS["H200-141GB"],
}


def family(name: str) -> str | None:
    """Of a GPU by its own name, as "NVIDIA A100-SXM4-80GB"; None of one that is not known, as an RTX A1000."""
    words = re.findall("[a-z0-9]+", name.lower())
    return next((known for known in FAMILIES if known in words), None)


# One core with AVX-512 in fp32; time follows the operations, whatever the width (measured, docs/performance.md).
CPU = Processor(
    tflops=0.18,
    bandwidth_gb=50,
    gemm_efficiency=1,
    bandwidth_efficiency=1,
    multiprocessors=1,
    tile=(1, 1),
    element_size=4,
    stored_multiple=1,
)
