"""A step's gradients added up by DeepSpeed's optimizers, in a few operations on all parameters at once.

Their own code takes two or three operations a parameter in every micro-batch. A GPU is done with one of them sooner
than a host can ask for the next.
"""

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def add_up_at_once(wrapper: Any) -> None:
    """Has DeepSpeed's wrapper of the optimizer add up the gradients of all parameters together: bf16, fp16, ZeRO-1.

    The sums have the bits of DeepSpeed's own. Where every gradient is passed on as soon as there is one, that is left
    so: under ZeRO-2 and ZeRO-3, with `overlap_comm` and with `immediate_grad_update`.
    """
    if isinstance(wrapper, BF16_Optimizer):
        _add_up_bf16(wrapper)
    elif isinstance(wrapper, DeepSpeedZeroOptimizer) and wrapper.use_grad_accum_attribute and not wrapper.overlap_comm:
        _add_up_fp16(wrapper)


def _taken(parameters: Sequence[Tensor]) -> Tensor:
    """The gradients of these parameters, one after the other; the parameters then have none."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        # The next gradient is then taken as it is; a tensor of zeros would be added to, for each parameter.
        parameter.grad = None
    return torch.cat([gradient.flatten() for gradient in gradients])


def _add_up_bf16(wrapper: BF16_Optimizer) -> None:
    """Norm and clipping are also of all gradients together; the norm is rounded differently."""
    groups = list(zip(wrapper.bf16_groups, wrapper.fp32_groups_actual_gradients_flat, strict=True))
    single = [gradient for group in wrapper.fp32_groups_gradients for gradient in group]

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        for parameters, sums in groups:
            # PyTorch's multi-tensor addition takes tensors of two types one by one; these are two operations.
            sums.add_(_taken(parameters))

    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        if for_clipping:
            return [sums for _, sums in groups]
        norms: Tensor = torch.stack(torch._foreach_norm(single))
        return [norms], {}  # its norm is that of all gradients; there are no experts

    if not wrapper.immediate_grad_update:
        wrapper.update_hp_grads = update_hp_grads
    wrapper.get_grads_for_norm = get_grads_for_norm


def _add_up_fp16(wrapper: DeepSpeedZeroOptimizer) -> None:
    """The sums are the parameters' `grad_accum`, which DeepSpeed reduces once a step and then drops.

    Whether the reduced ones are finite is asked of all together too.
    """
    reduce = wrapper.reduce_gradients

    @torch.no_grad()
    def add_up() -> None:
        for parameters in wrapper.bit16_groups:
            if all(parameter.grad is None for parameter in parameters):
                continue  # asked again after the reduction
            gradients = _taken(parameters)
            if (first := parameters[0].grad_accum) is not None:
                # The sums of a group lie one after the other.
                first.as_strided(gradients.shape, (1,)).add_(gradients)
                continue
            sums = gradients.to(wrapper.gradient_accumulation_dtype)
            pieces = sums.split([parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad_accum = piece.view_as(parameter)

    def reduce_gradients(pipeline_parallel: bool = False) -> None:
        add_up()
        wrapper.setup_buckets()
        reduce(pipeline_parallel)

    def has_overflow_partitioned_grads_serial() -> Tensor:
        reduced = [wrapper.averaged_gradients[index].flat_partition for index in range(len(wrapper.bit16_groups))]
        return torch.stack([wrapper._has_inf_or_nan(flat) for flat in reduced]).any()[None]

    for hook in wrapper._grad_acc_hooks:  # each would add up the gradient of one parameter
        hook.remove()
    wrapper.fill_grad_accum_attribute = add_up
    wrapper.reduce_gradients = reduce_gradients
    wrapper.has_overflow_partitioned_grads_serial = has_overflow_partitioned_grads_serial
