"""The CUDA kernels as PyTorch operators `torch.ops.earlybert.*`: their schemas, and the shapes of what they return.

csrc/operators.cu implements them, in a library that `extension` loads; tests do on a CPU. Shapes are all that tracing
needs (torch.compile, fake tensors, the meta device).

Shape suffixes: T rows, H columns, R groups of rows whose sums are added up afterwards, P stretches.
"""

import torch
from torch import Tensor

from earlybert.kernels.dropout import dropped_levels

# Of the rows that the kernels take; LAMB's tensors are fp32.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# As many groups of rows make partial sums of a vector's gradient: kPartialSums in csrc/operators.cu.
PARTIAL_SUMS = 256

SCHEMAS = (
    "bias_gelu_forward(Tensor hidden, Tensor bias) -> Tensor",
    "bias_gelu_backward(Tensor grad_output, Tensor hidden, Tensor bias) -> (Tensor, Tensor)",
    # Backward's first result is empty where nothing is dropped: it would be the second. The seed is an int64 scalar on
    # the CPU, read when the kernel is launched: a number would be frozen in a graph.
    "dropout_residual_layer_norm_forward(Tensor hidden, Tensor residual, Tensor weight, Tensor bias, "
    "float probability, Tensor seed, float epsilon) -> (Tensor, Tensor, Tensor, Tensor)",
    "dropout_residual_layer_norm_backward(Tensor grad_output, Tensor sum, Tensor mean, Tensor inverse_deviation, "
    "Tensor weight, float probability, Tensor seed) -> (Tensor, Tensor, Tensor)",
    "lamb_stage_one(Tensor stretches, Tensor chunk_owner, Tensor chunk_start, float beta1, float beta2, "
    "float weight_decay, float root_scale, float scaled_eps) -> Tensor",
    "lamb_stage_two(Tensor stretches, Tensor factors, Tensor chunk_owner, Tensor chunk_start) -> ()",
)
LIBRARY = torch.library.Library("earlybert", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema)


def drops(probability: float) -> bool:
    """Whether dropout with this probability, rounded to its levels, drops anything."""
    return dropped_levels(probability) > 0


@torch.library.register_fake("earlybert::bias_gelu_forward", lib=LIBRARY)
def _(hidden: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(hidden)


@torch.library.register_fake("earlybert::bias_gelu_backward", lib=LIBRARY)
def _(grad_output: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    columns = bias.numel()
    groups = torch.sym_min(hidden.numel() // columns, PARTIAL_SUMS)
    return torch.empty_like(hidden), hidden.new_empty(groups, columns, dtype=torch.float32)


@torch.library.register_fake("earlybert::dropout_residual_layer_norm_forward", lib=LIBRARY)
def _(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, probability: float, seed: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean_T = hidden.new_empty(hidden.numel() // weight.numel(), dtype=torch.float32)
    return torch.empty_like(hidden), torch.empty_like(hidden), mean_T, torch.empty_like(mean_T)


@torch.library.register_fake("earlybert::dropout_residual_layer_norm_backward", lib=LIBRARY)
def _(
    grad_output: Tensor,
    sum: Tensor,
    mean: Tensor,
    inverse_deviation: Tensor,
    weight: Tensor,
    probability: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    partial_2RH = sum.new_empty(2, torch.sym_min(mean.numel(), PARTIAL_SUMS), weight.numel(), dtype=torch.float32)
    hidden = torch.empty_like(sum) if drops(probability) else sum.new_empty(0)
    return hidden, torch.empty_like(sum), partial_2RH


@torch.library.register_fake("earlybert::lamb_stage_one", lib=LIBRARY)
def _(stretches: Tensor, chunk_owner: Tensor, chunk_start: Tensor, *numbers: float) -> Tensor:
    return stretches.new_empty(2, len(stretches), dtype=torch.float64)


@torch.library.register_fake("earlybert::lamb_stage_two", lib=LIBRARY)
def _(stretches: Tensor, factors: Tensor, chunk_owner: Tensor, chunk_start: Tensor) -> None:
    return None
