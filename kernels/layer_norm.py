"""Dropout, residual and LayerNorm in one pass, with the plain PyTorch reference beside the CUDA kernel.

Shape suffixes: T token rows (any leading dimensions), H hidden size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from earlybert.kernels import extension, operators
from earlybert.kernels.dropout import dropout as drop

# A block holds a row, each of its threads 16 bytes of it, or one element where rows are no multiple of 16 bytes.
MOST_THREADS = 512


def dropout_residual_layer_norm_reference(
    hidden_TH: Tensor,
    residual_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    dropout: float,
    eps: float,
) -> Tensor:
    """LayerNorm(residual + dropout(hidden)) * weight + bias, like `hidden_TH` (Ba et al. 2016).

    `dropout` is 0 in evaluation.
    """
    return F.layer_norm(residual_TH + drop(hidden_TH, dropout), weight_H.shape, weight_H, bias_H, eps)


class _DropoutResidualLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        residual_TH: Tensor,
        weight_H: Tensor,
        bias_H: Tensor,
        dropout: float,
        eps: float,
    ) -> Tensor:
        hidden_TH, residual_TH = hidden_TH.contiguous(), residual_TH.to(hidden_TH.dtype).contiguous()
        given_dtype = weight_H.dtype
        weight_H, bias_H = weight_H.to(hidden_TH.dtype), bias_H.to(hidden_TH.dtype)
        # From PyTorch's CPU generator: who seeds PyTorch seeds this mask, and nobody waits for the GPU.
        seed = torch.randint(2**63 - 1, ()) if dropout else torch.zeros((), dtype=torch.int64)
        output_TH, sum_TH, mean_T, deviation_T = torch.ops.earlybert.dropout_residual_layer_norm_forward(
            hidden_TH, residual_TH, weight_H, bias_H, dropout, seed, eps
        )
        ctx.save_for_backward(sum_TH, mean_T, deviation_T, weight_H, seed)
        ctx.dropout, ctx.vector_dtype = dropout, given_dtype
        return output_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *saved, seed = ctx.saved_tensors
        gradient_hidden_TH, gradient_residual_TH, partial_2RH = (
            torch.ops.earlybert.dropout_residual_layer_norm_backward(
                gradients[0].contiguous(), *saved, ctx.dropout, seed
            )
        )
        if not operators.drops(ctx.dropout):
            gradient_hidden_TH = gradient_residual_TH
        # Rounded once, both together.
        weight_H, bias_H = partial_2RH.sum(1).to(ctx.vector_dtype)
        return gradient_hidden_TH, gradient_residual_TH, weight_H, bias_H, None, None


def _fits(hidden_TH: Tensor) -> bool:
    """Whether the kernel takes rows so wide: 4,096 columns in half precision, 2,048 in fp32, odd widths 512."""
    columns, pack = hidden_TH.shape[-1], 16 // hidden_TH.itemsize
    return columns <= MOST_THREADS * (1 if columns % pack else pack)


def dropout_residual_layer_norm(
    hidden_TH: Tensor,
    residual_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor,
    dropout: float,
    eps: float,
) -> Tensor:
    """`dropout_residual_layer_norm_reference` by the CUDA kernel where there is one.

    The kernel stores no mask: it draws one seed from PyTorch's CPU generator and makes the mask from (seed, row,
    column) again in the backward pass. Probabilities are rounded to multiples of 2^-16. Gradients of the two vectors
    are summed in fp32.
    """
    arguments = hidden_TH, residual_TH, weight_H, bias_H, dropout, eps
    if extension.operators_for(hidden_TH) and _fits(hidden_TH):
        return _DropoutResidualLayerNorm.apply(*arguments)
    return dropout_residual_layer_norm_reference(*arguments)
