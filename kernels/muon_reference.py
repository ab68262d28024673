"""Muon as a textbook has it, to compare `Muon` with: whole matrices, one after the other, no sharding, no tricks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from earlybert.kernels.lamb_reference import LambReference


def newton_schulz(matrix: Tensor) -> Tensor:
    """A matrix [R, C] with all singular values near 1 (Jordan et al. 2024), in its own precision."""
    x = matrix / max(float(matrix.norm()), 1e-7)
    if transposed := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if transposed else x


class MuonReference(LambReference):
    """The formulas in `earlybert.kernels.muon`: groups that say `"orthogonalize": True`; LAMB on the others."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("orthogonalize")]
        super().step(closure)
        self.param_groups = groups
        for group in (group for group in groups if group.get("orthogonalize")):
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                self._step_on_matrix(weight, group["lr"], group["weight_decay"], group.get("momentum", 0.95))

    def _step_on_matrix(self, weight: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        state["momentum"] = momentum * state.get("momentum", 0) + gradient
        update = gradient + momentum * state["momentum"]
        blocks = self.row_blocks.get(weight, 1)  # type: ignore[call-overload]
        for block, block_update in zip(weight.chunk(blocks), update.chunk(blocks), strict=True):
            block *= 1 - lr * weight_decay
            block -= lr * self.scale(*block.shape) * newton_schulz(block_update)

    def scale(self, rows: int, columns: int) -> float:
        """Liu et al. 2025, section 2.2."""
        return 0.2 * max(rows, columns) ** 0.5
