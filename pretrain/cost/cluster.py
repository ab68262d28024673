"""What a plan needs of a cluster: memory, time, disk. A model; docs/cost-model.md states and checks it.

Bytes, seconds, operations; per GPU unless said otherwise. H hidden size, A attention width (kept heads times head
size), a kept heads, F kept neurons, S sequence length, P predicted positions, V vocabulary rows.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError
from earlybert.pretrain.cost.gpus import GPUS, Gpu
from earlybert.pretrain.cost.muon import busiest_rank_flops, matrix_elements
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.work import Work, count_parameters, flops_per_sequence
from earlybert.pretrain.plan.stages import Stage

# CUDA context, cuBLAS workspaces, fragmentation.
RESERVED_BYTES = 1.5e9
# The formulas are right within a tenth; a run that ends for want of memory costs more than a smaller micro-batch.
USABLE_SHARE = 0.9
# LAMB in PyTorch's operations reads or writes master, moments, gradient and update 14 times in fp32; Muon, beside its
# matrix products, about as often.
OPTIMIZER_BYTES_PER_PARAMETER = 14 * 4
# Each collective over a ring of N waits about N times for a message to arrive.
LATENCY_SECONDS = 10e-6
# Share of the stated network bandwidth that a large all-reduce reaches.
NETWORK_EFFICIENCY = 0.8
# Attention's small matrix products are half as fast as the large ones.
ATTENTION_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs; `network_gbit` is what a node can send to others, Gbit/s."""

    nodes: int
    gpus_per_node: int
    gpu_name: str
    network_gbit: float

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.gpu_name]


def parse_cluster(text: str, network_gbit: float) -> Cluster:
    """From e.g. "4x8 V100-32GB"; raises UserError."""
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s+(?:x\s*)?(\S+)\s*", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 1:
        raise UserError(f'--cluster is {text!r}; it must be NODES x GPUS-PER-NODE GPU, for example "4x8 V100-32GB"')
    known = {name.lower(): name for name in GPUS}
    if match[3].lower() not in known:
        raise UserError(f"--cluster names the GPU {match[3]!r}, which is not known{alternatives(match[3], list(GPUS))}")
    if not 0 < network_gbit < math.inf:
        raise UserError(f"--network-gbit is {network_gbit:g}; it must be a number above 0")
    return Cluster(int(match[1]), int(match[2]), known[match[3].lower()], network_gbit)


@dataclass(frozen=True)
class Kernels:
    """Bytes of elementwise memory traffic per token and layer, forward and backward, at 2 bytes a number.

    `unfused` is PyTorch's operators one by one, `fused` is bias, dropout, residual and LayerNorm in one kernel each.
    `scores` says whether attention writes its S x S scores to memory.
    """

    fused: bool
    scores: bool

    def traffic(self, hidden: int, heads: float, head_size: int, neurons: float, length: int) -> float:
        width = heads * head_size
        gelu, attention_io = 10 * neurons, 24 * width
        biases = 2 * (3 * width if self.fused else neurons + 2 * hidden + 3 * width)
        norms = (40 if self.fused else 64) * hidden
        permutes = 32 * width if self.scores else 0
        scores = heads * length * ((8 * 2 + 1) + (11 * 2 + 1)) if self.scores else 0
        return gelu + attention_io + biases + norms + permutes + scores


# What this package runs on a GPU without its optional kernels, which no GPU has run yet: PyTorch's operators, with its
# attention that keeps no scores.
OURS = Kernels(fused=False, scores=False)


@dataclass(frozen=True)
class Shape:
    """What the costs depend on of a stage's network and batch, and of its optimizer."""

    config: NetworkConfig
    length: int
    predictions: int
    global_batch: int
    muon: bool = False

    @classmethod
    def of(cls, config: NetworkConfig, stage: Stage, *, muon: bool = False) -> "Shape":
        return cls(config, stage.length, stage.max_predictions, stage.global_batch, muon)

    @cached_property
    def parameters(self) -> int:
        return count_parameters(self.config)

    @cached_property
    def matrix_elements(self) -> int:
        """Parameters that are Muon's."""
        return matrix_elements(self.config) if self.muon else 0


def activation_bytes(shape: Shape, number: int = 2, *, keeps_scores: bool = False) -> float:
    """What one full sequence keeps for the backward pass; `number` bytes a value (2 in half precision, 4 in fp32).

    Per token and layer: inputs of the projections and of GELU, attention's operands and result, LayerNorms' inputs and
    statistics, and (a byte each) dropout masks: number * (4 H + 4 A + 2 F) + 2 H + 16 + 4 a, and where attention keeps
    its scores S * a * (2 number + 1). In the last layer all tokens have keys and values, number * (H + 2 A), and only
    the P + 1 needed ones the rest. The masked-token head keeps number * 5 H for each predicted position.
    """
    config, length, needed = shape.config, shape.length, shape.predictions + 1
    hidden, drops = config.hidden_size, config.hidden_dropout_prob > 0
    drops_scores = config.attention_probs_dropout_prob > 0
    total = length * hidden * (number + drops)  # embeddings
    for layer, (heads, neurons) in enumerate(zip(config.heads, config.neurons, strict=True)):
        width = heads * config.head_size
        rows = length
        if layer == config.num_hidden_layers - 1:
            rows = needed
            total += length * number * (hidden + 2 * width) - needed * number * 2 * width
        total += rows * (number * (4 * hidden + 4 * width + 2 * neurons) + 2 * hidden * drops + 16 + 4 * heads)
        if keeps_scores:
            total += rows * length * heads * (number * (2 if drops_scores else 1) + drops_scores)
    work = Work(predictions=shape.predictions, sequences=1)
    return total + number * sum(part.count(work) * part.kept_values(config) for part in loss_parts(config.losses))


def gradient_bytes(shape: Shape, number: int = 2) -> float:
    """What one sequence takes on top during the backward pass: gradients inside the widest layer at one time."""
    config = shape.config
    widest = max(
        4 * heads * config.head_size + 2 * neurons for heads, neurons in zip(config.heads, config.neurons, strict=True)
    )
    return shape.length * number * (widest + 2 * config.hidden_size)


def loss_bytes(shape: Shape, micro_batch: int, number: int = 2) -> float:
    """What the parts of the loss take in passing."""
    work = Work(predictions=micro_batch * shape.predictions, sequences=micro_batch)
    parts = loss_parts(shape.config.losses)
    return sum(part.passing_bytes(shape.config, part.count(work), number) for part in parts)


def state_bytes(parameters: int, gpus: int, number: int = 2) -> float:
    """Weights, gradients, masters and moments under ZeRO-1, while a micro-batch of many is computed.

    Weights, and the sums of the gradients in fp32, are whole on every GPU; fp32 master and both moments are shared out:
    number + 4 + 12 / GPUs bytes a parameter.
    """
    return parameters * (number + 4 + 12 / gpus)


def passing_bytes(parameters: int) -> float:
    """What gradients take on top when none of the activations is left.

    In half precision they are put together before they are added to the sums; a step's sums are copied into DeepSpeed's
    bucket, to be reduced. Either is 4 bytes a parameter. (In fp16 the bucket has 2 GB for smaller networks, too.)
    """
    return 4.0 * parameters


def peak_bytes(shape: Shape, micro_batch: int, gpus: int, number: int = 2, *, keeps_scores: bool = False) -> float:
    """Largest memory that training takes on one GPU."""
    per_sequence = activation_bytes(shape, number, keeps_scores=keeps_scores) + gradient_bytes(shape, number)
    states = state_bytes(shape.parameters, gpus, number) - 4 * shape.matrix_elements / gpus  # Muon has one moment
    passes = micro_batch * per_sequence + loss_bytes(shape, micro_batch, number)
    return RESERVED_BYTES + states + max(passes, passing_bytes(shape.parameters))


def largest_micro_batch(shape: Shape, memory: float, gpus: int, number: int = 2, *, keeps_scores: bool = False) -> int:
    """Most sequences of a GPU's share of the global batch that fit into so many bytes of memory; 0 where none does."""

    def peak(sequences: int) -> float:
        return peak_bytes(shape, sequences, gpus, number, keeps_scores=keeps_scores)

    share = math.ceil(shape.global_batch / gpus)
    return bisect_right(range(1, share + 1), USABLE_SHARE * memory, key=peak)


def even_micro_batch(global_batch: int, gpus: int, largest: int) -> int:
    """A GPU's share of the global batch in as few equal parts of at most `largest` sequences as there can be."""
    share = math.ceil(global_batch / gpus)
    return math.ceil(share / math.ceil(share / largest))


def fitting_micro_batch(shape: Shape, cluster: Cluster) -> int:
    """What `micro_batch: auto` takes where all memory is free; raises UserError where not even one sequence fits."""
    memory = cluster.gpu.memory_gb * 1e9
    budget = USABLE_SHARE * memory
    largest = largest_micro_batch(shape, memory, cluster.gpus)
    if largest == 0:
        raise UserError(
            f"one sequence of {shape.length} tokens takes {peak_bytes(shape, 1, cluster.gpus) / 1e9:.1f} GB, but "
            f"{cluster.gpu_name} has {budget / 1e9:.1f} GB to use; it must be a GPU with more memory or a smaller model"
        )
    return even_micro_batch(shape.global_batch, cluster.gpus, largest)


def sequence_seconds(shape: Shape, gpu: Gpu, kernels: Kernels = OURS) -> float:
    """Forward and backward pass of one sequence: matrix products, attention and elementwise traffic, one after another.

    Attention without stored scores computes them again in the backward pass (7/6 of the operations).
    """
    config = shape.config
    everything = flops_per_sequence(config, shape.length, shape.predictions)
    attention = sum(12.0 * shape.length**2 * heads * config.head_size for heads in config.heads)
    traffic = shape.length * sum(
        kernels.traffic(config.hidden_size, heads, config.head_size, neurons, shape.length)
        for heads, neurons in zip(config.heads, config.neurons, strict=True)
    )
    recomputed = 1.0 if kernels.scores else 7 / 6
    return (
        gpu.product_seconds(everything - attention)
        + gpu.product_seconds(attention * recomputed) / ATTENTION_EFFICIENCY
        + gpu.traffic_seconds(traffic)
    )


def communication_seconds(parameters: int, cluster: Cluster) -> float:
    """Gradients reduced and new weights gathered, once per optimizer step, in half precision over a ring.

    Each is the volume of half an all-reduce; inside the nodes over their links, between them over the network.
    """
    if cluster.gpus == 1:
        return 0.0
    volume = 2 * 2.0 * parameters
    inside = volume * (1 - 1 / cluster.gpus_per_node) / (cluster.gpu.link_gb * 1e9 * NETWORK_EFFICIENCY)
    network = cluster.network_gbit / 8 * 1e9 * NETWORK_EFFICIENCY
    between = volume * (1 - 1 / cluster.nodes) / network
    return inside + between + 2 * LATENCY_SECONDS * cluster.gpus


def exchange_seconds(matrix_elements: int, cluster: Cluster) -> float:
    """Muon's matrices to their owners and back, once a step, in half precision, were none where it belongs already."""
    if cluster.gpus == 1 or not matrix_elements:
        return 0.0
    sent = 2 * 2.0 * matrix_elements / cluster.gpus
    inside = sent * (1 - 1 / cluster.gpus_per_node) / (cluster.gpu.link_gb * 1e9 * NETWORK_EFFICIENCY)
    network = cluster.network_gbit / 8 * 1e9 * NETWORK_EFFICIENCY
    between = sent * cluster.gpus_per_node * (1 - 1 / cluster.nodes) / network
    return inside + between + 2 * LATENCY_SECONDS * cluster.gpus


def optimizer_seconds(shape: Shape, cluster: Cluster) -> float:
    """A GPU's share of the updates; with Muon, of that GPU which orthogonalises most."""
    updated = shape.parameters / cluster.gpus * OPTIMIZER_BYTES_PER_PARAMETER
    products = busiest_rank_flops(shape.config, cluster.gpus) if shape.muon else 0
    return cluster.gpu.traffic_seconds(updated) + cluster.gpu.product_seconds(products)


@dataclass(frozen=True)
class StageCost:
    """What one stage needs on a cluster; seconds are of one optimizer step."""

    micro_batch: int
    accumulation: int
    peak_bytes: float
    compute: float
    communication: float
    optimizer: float

    @property
    def step_seconds(self) -> float:
        return self.compute + self.communication + self.optimizer


def stage_cost(shape: Shape, cluster: Cluster, kernels: Kernels = OURS) -> StageCost:
    """Micro-batch, accumulation, memory and time of a step; raises UserError where nothing fits."""
    micro_batch = fitting_micro_batch(shape, cluster)
    accumulation = math.ceil(shape.global_batch / (micro_batch * cluster.gpus))
    return StageCost(
        micro_batch,
        accumulation,
        peak_bytes(shape, micro_batch, cluster.gpus),
        accumulation * micro_batch * sequence_seconds(shape, cluster.gpu, kernels),
        communication_seconds(shape.parameters, cluster) + exchange_seconds(shape.matrix_elements, cluster),
        optimizer_seconds(shape, cluster),
    )


def checkpoint_bytes(shape: Shape) -> int:
    """Master and both moments in fp32; Muon has one."""
    return 12 * shape.parameters - 4 * shape.matrix_elements


def disk_bytes(shapes: Sequence[Shape], keep: int) -> int:
    """The kept checkpoints of the largest network and the one being written, and an export of every kind."""
    exports = 2 * 4 * max(shape.parameters for shape in shapes)
    return max(map(checkpoint_bytes, shapes)) * (keep + 1) + exports
