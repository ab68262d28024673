"""Coefficients applied by folding them into the weight of the next matrix product.

`linear(gelu(h), W * c)` is the same function of (h, W, c), with the same three gradients, as `linear(gelu(h) * c, W)`,
but it never touches an activation: its cost does not grow with the batch, and any attention implementation serves.

Shape suffixes: O output features, I input features, C coefficients, I = C * group.
"""

import torch
from torch import Tensor


def fold_coefficients(weight_OI: Tensor, coefficient_C: Tensor) -> Tensor:
    """Scales the columns of a weight: coefficient c acts on its own `I / C` neighbouring columns.

    The product and both of its gradients are computed in fp32 at least, whatever the dtype of the arguments: a
    coefficient moves by about one learning rate a step, which half precision around 1.0 cannot represent (EarlyBERT,
    Eq. 2 and 3 place the coefficients; 0.0032 is all they move in a fine-tuning search).

    Returns the folded weight, [O, I], in the dtype of `weight_OI`.
    """
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    group = weight_OI.shape[1] // coefficient_C.shape[0]
    scale_I = coefficient_C.to(dtype).repeat_interleave(group)
    return (weight_OI.to(dtype) * scale_I).to(weight_OI.dtype)


def scale_columns_reference(activation_xI: Tensor, coefficient_C: Tensor) -> Tensor:
    """The definition that folding must agree with: scales the activation itself, [..., I]."""
    group = activation_xI.shape[-1] // coefficient_C.shape[0]
    return activation_xI * coefficient_C.repeat_interleave(group)
