"""A step's gradients added up by DeepSpeed's BF16_Optimizer, in a few operations on all parameters at once.

Its own code takes three operations a parameter in every micro-batch and two in every step. A GPU is done with one of
them sooner than a host can ask for the next.
"""

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor


def add_up_at_once(wrapper: BF16_Optimizer) -> None:
    """Has this wrapper add up, measure and clip the gradients of all parameters together.

    The sums have the bits of DeepSpeed's own, and the norm is rounded differently. Where `immediate_grad_update` has
    every gradient added as soon as there is one, that is left so.
    """
    groups = list(zip(wrapper.bf16_groups, wrapper.fp32_groups_actual_gradients_flat, strict=True))
    single = [gradient for group in wrapper.fp32_groups_gradients for gradient in group]

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        for parameters, sums in groups:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            # PyTorch's multi-tensor addition takes tensors of two types one by one; these are two operations.
            sums.add_(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter in parameters:
                # The next gradient is then taken as it is; a tensor of zeros would be added to, for each parameter.
                parameter.grad = None

    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        if for_clipping:
            return [sums for _, sums in groups]
        norms: Tensor = torch.stack(torch._foreach_norm(single))
        return [norms], {}  # its norm is that of all gradients; there are no experts

    if not wrapper.immediate_grad_update:
        wrapper.update_hp_grads = update_hp_grads
    wrapper.get_grads_for_norm = get_grads_for_norm
