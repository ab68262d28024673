"""Coefficients applied by folding them into the weight of the next matrix product.

`linear(gelu(h), W * c)` is the same function of (h, W, c), with the same three gradients, as `linear(gelu(h) * c, W)`,
but it never touches an activation: its cost does not grow with the batch, and any attention implementation serves.

Shape suffixes: O output features, I input features, C coefficients, I = C * group.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _ScaleColumns(torch.autograd.Function):
    """weight * scale, computed in the scale's precision and rounded once.

    As operations of autograd's it would make, and keep for the backward pass, an fp32 copy of the weight: a search
    does this in every micro-batch to most of the network.
    """

    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, scale_I: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_I)
        return torch.mul(weight_OI, scale_I, out=torch.empty_like(weight_OI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        weight_OI, scale_I = ctx.saved_tensors
        of_weight_OI = torch.mul(gradients[0], scale_I, out=torch.empty_like(weight_OI))
        return of_weight_OI, (gradients[0].to(scale_I.dtype) * weight_OI).sum(0)


def fold_coefficients(weight_OI: Tensor, coefficient_C: Tensor) -> Tensor:
    """Scales the columns of a weight: coefficient c acts on its own `I / C` neighbouring columns.

    The product and both of its gradients are computed in fp32 at least, whatever the dtype of the arguments: a
    coefficient moves by about one learning rate a step, which half precision around 1.0 cannot represent (EarlyBERT,
    Eq. 2 and 3 place the coefficients; 0.0032 is all they move in a fine-tuning search).

    Returns the folded weight, [O, I], in the dtype of `weight_OI`.
    """
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    group = weight_OI.shape[1] // coefficient_C.shape[0]
    scale_I = coefficient_C.to(dtype)
    return _ScaleColumns.apply(weight_OI, scale_I.repeat_interleave(group) if group > 1 else scale_I)


def scale_columns_reference(activation_xI: Tensor, coefficient_C: Tensor) -> Tensor:
    """The definition that folding must agree with: scales the activation itself, [..., I]."""
    group = activation_xI.shape[-1] // coefficient_C.shape[0]
    return activation_xI * coefficient_C.repeat_interleave(group)
