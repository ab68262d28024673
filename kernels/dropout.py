"""Dropout whose random numbers do not cost more than what they drop.

On a CPU the Bernoulli draws are most of the time of `F.dropout`; 16 random bits an element are enough and four times
faster. Probabilities are rounded to multiples of 2^-16, and what stays is scaled by the rounded one: the mean is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Levels of the random numbers that decide: 2^16.
LEVELS = 1 << 16


def dropped_levels(probability: float) -> int:
    """How many of the levels are dropped; half a level is rounded up, as in csrc/scalar.cuh."""
    return int(probability * LEVELS + 0.5)


def keep_scale(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """What to multiply with on a CPU: 0 where dropped, else 1 / (1 - probability). From PyTorch's CPU generator."""
    dropped = min(dropped_levels(probability), LEVELS - 1)
    elements = shape.numel()
    bits = torch.empty(-(-elements // 4), dtype=torch.int64).random_(-(2**63), None)
    scale = torch.empty(shape, dtype=dtype)
    # Straight into 0.0 and 1.0: converting truth values takes three times as long as finding them.
    torch.ge(bits.view(torch.int16)[:elements].view(shape), dropped - LEVELS // 2, out=scale)
    return scale.mul_(LEVELS / (LEVELS - dropped))


class _CpuDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input_x: Tensor, probability: float) -> Tensor:  # type: ignore[no-untyped-def]
        scale_x = keep_scale(input_x.shape, probability, input_x.dtype)
        ctx.save_for_backward(scale_x)
        return input_x * scale_x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_x: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient_x * ctx.saved_tensors[0], None


def dropout(input_x: Tensor, probability: float) -> Tensor:
    """`F.dropout` in training: zeroes elements with this probability and scales the others up; 0 changes nothing."""
    if probability == 0.0:
        return input_x
    # A compiler fuses F.dropout with what is around it.
    if input_x.device.type == "cpu" and probability < 1.0 and not torch.compiler.is_compiling():
        return _CpuDropout.apply(input_x, probability)
    return F.dropout(input_x, probability)
