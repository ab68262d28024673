"""Bias and GELU in one pass, with the plain PyTorch reference beside the CUDA kernel.

Shape suffixes: T token rows (any leading dimensions), H input width, F neurons.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from earlybert.kernels import extension
from earlybert.kernels.sizes import STORED_MULTIPLE


def bias_gelu_reference(hidden_TF: Tensor, bias_F: Tensor) -> Tensor:
    """GELU with the exact error function (Hendrycks and Gimpel 2016) of hidden + bias, like `hidden_TF`."""
    return F.gelu(hidden_TF + bias_F)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TF: Tensor, bias_F: Tensor) -> Tensor:
        hidden_TF, bias_F = hidden_TF.contiguous(), bias_F.to(hidden_TF.dtype)
        ctx.save_for_backward(hidden_TF, bias_F)
        return torch.ops.earlybert.bias_gelu_forward(hidden_TF, bias_F)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        hidden_TF, bias_F = ctx.saved_tensors
        gradient_TF, partial_RF = torch.ops.earlybert.bias_gelu_backward(gradients[0].contiguous(), hidden_TF, bias_F)
        # Autograd casts the fp32 sum to the bias's own precision, once.
        return gradient_TF, partial_RF.sum(0)


def bias_gelu(hidden_TF: Tensor, bias_F: Tensor) -> Tensor:
    """`bias_gelu_reference` by the CUDA kernel where there is one: any width, bias gradient summed in fp32."""
    if extension.operators_for(hidden_TF):
        return _BiasGelu.apply(hidden_TF, bias_F)
    return bias_gelu_reference(hidden_TF, bias_F)


def linear_gelu(input_TH: Tensor, weight_FH: Tensor, bias_F: Tensor) -> Tensor:
    """GELU(input @ weight.T + bias), [T, F']; F' is F on CPUs and F rounded up to 64 on GPUs.

    The columns beyond F are exactly zero and so are all their gradients: `linear` takes such an input as it is.
    """
    if input_TH.device.type == "cpu":
        return F.gelu(F.linear(input_TH, weight_FH, bias_F))
    added = -weight_FH.shape[0] % STORED_MULTIPLE
    if added:
        weight_FH, bias_F = F.pad(weight_FH, (0, 0, 0, added)), F.pad(bias_F, (0, added))
    if extension.operators_for(input_TH):
        return bias_gelu(F.linear(input_TH, weight_FH), bias_F)
    return F.gelu(F.linear(input_TH, weight_FH, bias_F))


def linear(input_TF: Tensor, weight_HF: Tensor, bias_H: Tensor | None) -> Tensor:
    """`F.linear` that ignores input columns beyond the weight's, which are zero: what follows `linear_gelu`."""
    added = input_TF.shape[-1] - weight_HF.shape[1]
    return F.linear(input_TF, F.pad(weight_HF, (0, added)) if added else weight_HF, bias_H)
