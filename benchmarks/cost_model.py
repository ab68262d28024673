"""Is the cost model of `earlybert plan --cluster` right? Published runs beside its predictions, and measured memory.

    python benchmarks/cost_model.py [--memory] [--out FILE.json]

Without --memory: published BERT-Large runs on V100s and A100s, other people's programs all, each predicted with the
kernels that it had. With --memory: peaks of processes that train on this CPU (fp32), beside the formula.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import measured_on

from earlybert.core.files import write_json
from earlybert.pretrain.cost.cluster import (
    Cluster,
    Kernels,
    Shape,
    activation_bytes,
    communication_seconds,
    gradient_bytes,
    sequence_seconds,
    stage_cost,
)
from earlybert.pretrain.cost.gpus import GPUS
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork

LARGE = NetworkConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
FUSED, UNFUSED = Kernels(fused=True, scores=False), Kernels(fused=False, scores=True)
V100, A100 = "V100-32GB", "A100-80GB"


@dataclass(frozen=True)
class Speed:
    """A published speed: samples per second on all GPUs of a node together, of these lengths in equal numbers."""

    name: str
    gpu: str
    lengths: tuple[int, ...]
    predictions: int
    kernels: Kernels
    gpus: int
    published: float

    def predicted(self) -> float:
        batch = 65536 if self.lengths == (128,) else 32768
        shapes = [Shape(LARGE, length, self.predictions, batch) for length in self.lengths]
        sample = statistics.fmean(sequence_seconds(shape, GPUS[self.gpu], self.kernels) for shape in shapes)
        communication = communication_seconds(shapes[0].parameters, Cluster(1, self.gpus, self.gpu, 100))
        return batch / (batch / self.gpus * sample + communication)


@dataclass(frozen=True)
class Training:
    """A published pre-training from beginning to end: minutes on DGX-2 nodes of 16 GPUs with 8 x 100 Gbit/s."""

    name: str
    kernels: Kernels
    gpus: int
    phase_samples: tuple[float, float]
    published: float

    def predicted(self) -> float:
        cluster = Cluster(self.gpus // 16, 16, V100, 800)
        seconds = 0.0
        phases = ((128, 20, 65536), (512, 80, 32768))
        for samples, (length, predictions, batch) in zip(self.phase_samples, phases, strict=True):
            cost = stage_cost(Shape(LARGE, length, predictions, batch), cluster, self.kernels)
            seconds += samples / batch * cost.step_seconds
        return seconds / 60


# NVIDIA's phase 2 sorts samples of up to 512 tokens into bins of 64 and so skips most padding; published speeds count
# whole samples. In MLPerf's phase 2 their lengths have a mean of 254 and a root mean square of 320; rounded up into
# bins 286 and 345. Time has no higher power of the length than the second, so two lengths with these means stand for
# all.
BINNED = (93, 479)
SPEEDS = (
    Speed("DeepSpeed kernels, length 128, 1 V100", V100, (128,), 20, FUSED, 1, 272),
    Speed("DeepSpeed kernels, length 512, 1 V100", V100, (512,), 80, FUSED, 1, 52),
    Speed("NVIDIA, length 128, 1 V100", V100, (128,), 20, UNFUSED, 1, 224),
    Speed("NVIDIA, length 128, 8 V100", V100, (128,), 20, UNFUSED, 8, 1746),
    Speed("NVIDIA, length <= 512 in bins, 1 V100", V100, BINNED, 80, UNFUSED, 1, 75),
    Speed("NVIDIA, length <= 512 in bins, 8 V100", V100, BINNED, 80, UNFUSED, 8, 586),
    Speed("NVIDIA, length 128, 1 A100", A100, (128,), 20, UNFUSED, 1, 580),
    Speed("NVIDIA, length 128, 8 A100", A100, (128,), 20, UNFUSED, 8, 4591),
    Speed("NVIDIA, length <= 512 in bins, 1 A100", A100, BINNED, 80, UNFUSED, 1, 210),
    Speed("NVIDIA, length <= 512 in bins, 8 A100", A100, BINNED, 80, UNFUSED, 8, 1657),
)
# DeepSpeed's tutorial: 403 million samples, then 18 to 22 million. NVIDIA's recipe: 7,038 and 1,563 steps.
DEEPSPEED_SAMPLES, NVIDIA_SAMPLES = (403e6, 20e6), (7038 * 65536.0, 1563 * 32768.0)
TRAININGS = (
    Training("DeepSpeed, 16 V100", FUSED, 16, DEEPSPEED_SAMPLES, 33 * 60 + 13),
    Training("DeepSpeed, 64 V100", FUSED, 64, DEEPSPEED_SAMPLES, 8 * 60 + 41),
    Training("DeepSpeed, 256 V100", FUSED, 256, DEEPSPEED_SAMPLES, 144),
    Training("DeepSpeed, 1,024 V100", FUSED, 1024, DEEPSPEED_SAMPLES, 44),
    Training("NVIDIA, 256 V100", UNFUSED, 256, NVIDIA_SAMPLES, 236),
    Training("NVIDIA, 1,024 V100", UNFUSED, 1024, NVIDIA_SAMPLES, 67),
    Training("NVIDIA, 1,472 V100", UNFUSED, 1472, NVIDIA_SAMPLES, 47),
)


def published_runs() -> list[dict[str, Any]]:
    """Every published run with what the model predicts for it."""
    rows = []
    for unit, runs in (("sequences/s", SPEEDS), ("minutes", TRAININGS)):
        for run in runs:
            predicted = run.predicted()
            row = {"name": run.name, "unit": unit, "published": run.published, "predicted": predicted}
            rows.append(row | {"difference": predicted / run.published - 1})
    return rows


def print_published() -> list[dict[str, Any]]:
    rows = published_runs()
    print(f"{'BERT-Large':<40}{'unit':>12}{'published':>11}{'predicted':>11}{'difference':>12}")
    for row in rows:
        numbers = f"{row['published']:>11,.0f}{row['predicted']:>11,.0f}{row['difference']:>+12.0%}"
        print(f"{row['name']:<40}{row['unit']:>12}{numbers}")
    return rows


SMALL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
WIDTHS: dict[str, dict[str, Any]] = {
    "dense": {},
    "narrow": {"kept_heads": (tuple(range(5)),) * 6, "kept_neurons": (tuple(range(1408)),) * 6},
}


def memory_shape(width: str, length: int) -> Shape:
    """Six layers of 512, 8 heads and 2,048 neurons, or 5 and 1,408."""
    return Shape(NetworkConfig(**SMALL, **WIDTHS[width]), length, length * 20 // 128, 64)


def full_batch(shape: Shape, sequences: int) -> Batch:
    return Batch.full(sequences, shape.length, shape.predictions, shape.config.vocab_size)


def train_once(width: str, length: int, micro_batch: int) -> None:
    """Prints the growth of this process' peak memory, in bytes, by two forward and backward passes."""
    torch.set_num_threads(1)
    shape = memory_shape(width, length)
    model = PreTrainingNetwork(shape.config).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = full_batch(shape, micro_batch)
    for _ in range(2):
        torch.stack([score.loss for score in model(batch).scores.values()]).sum().backward()
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def measured_peak(width: str, length: int, micro_batch: int) -> int:
    """Bytes, of a process of its own."""
    command = [sys.executable, __file__, "--train-once", width, str(length), str(micro_batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory() -> list[dict[str, Any]]:
    """What a sequence takes: peaks with 16,384 and 4,096 tokens apart, so what is always there drops out."""
    print(f"{'MB a sequence, fp32 on CPU':<28}{'measured':>10}{'formula':>10}{'difference':>12}")
    rows = []
    for width in WIDTHS:
        for length in (128, 512):
            shape, few, many = memory_shape(width, length), 4096 // length, 16384 // length
            measured = (measured_peak(width, length, many) - measured_peak(width, length, few)) / (many - few)
            # On a CPU attention keeps its scores.
            formula = activation_bytes(shape, 4, keeps_scores=True) + gradient_bytes(shape, 4)
            row = {"width": width, "length": length, "measured": measured, "formula": formula}
            rows.append(row | {"difference": formula / measured - 1})
            numbers = f"{measured / 1e6:>10.1f}{formula / 1e6:>10.1f}{formula / measured - 1:>+12.0%}"
            print(f"{f'{width}, length {length}':<28}{numbers}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--train-once", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.train_once:
        width, length, micro_batch = arguments.train_once
        train_once(width, int(length), int(micro_batch))
        return
    rows = print_memory() if arguments.memory else print_published()
    if arguments.out:
        write_json(arguments.out, measured_on() | {"rows": rows})


if __name__ == "__main__":
    main()
