"""LAMB as a textbook has it, to compare `Lamb` with: whole tensors, one after the other, no sharding, no tricks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LambReference(torch.optim.Optimizer):
    """The formulas in `earlybert.kernels.lamb`, in the tensors' own precision; options as `Lamb` has them.

    `ratios` holds the trust ratios of the last step for each tensor that has any, one per row block. It takes the
    tensors it is given for whole ones: under ZeRO it is the naive LAMB, with one trust ratio per flat partition.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        nvlamb: bool = False,
        max_trust_ratio: float = float("inf"),
        row_blocks: Mapping[nn.Parameter, int] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.betas, self.eps, self.bias_correction = betas, eps, bias_correction
        self.nvlamb, self.max_trust_ratio, self.row_blocks = nvlamb, max_trust_ratio, row_blocks or {}
        self.ratios: dict[Tensor, list[float]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on every tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                update = self._direction(weight) + group["weight_decay"] * weight
                adapted = group["weight_decay"] or self.nvlamb
                blocks = self.row_blocks.get(weight, 1)
                pairs = list(zip(weight.chunk(blocks), update.chunk(blocks), strict=True))
                ratios = [self._ratio(*pair) if adapted else 1.0 for pair in pairs]
                for ratio, (block, block_update) in zip(ratios, pairs, strict=True):
                    block -= group["lr"] * ratio * block_update
                if adapted:
                    self.ratios[weight] = ratios

    def _ratio(self, weight: Tensor, update: Tensor) -> float:
        weight_norm, update_norm = weight.norm().item(), update.norm().item()
        ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        return min(ratio, self.max_trust_ratio)

    def _direction(self, weight: Tensor) -> Tensor:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        (beta1, beta2), step = self.betas, state.get("step", 0) + 1
        state["step"] = step
        state["exp_avg"] = beta1 * state.get("exp_avg", 0) + (1 - beta1) * gradient
        state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * gradient**2
        correct = self.bias_correction
        first = state["exp_avg"] / (1 - beta1**step if correct else 1)
        second = state["exp_avg_sq"] / (1 - beta2**step if correct else 1)
        return first / (second.sqrt() + self.eps)
