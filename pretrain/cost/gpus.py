"""Data sheets of GPUs."""

from dataclasses import dataclass


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
