"""LAMB on many fp32 tensors in two CUDA kernels, with the ranks' communication between them (see `lamb.py`).

Stage one reads weights, gradients and moments once and writes moments, updates and squared norms: 28 bytes a parameter.
Stage two adds the updates, each tensor's times a factor of its own: 12 bytes. The reference is `Lamb` itself, on
multi-tensor operations of PyTorch.

Shape suffixes: P stretches (consecutive elements of one tensor), C chunks of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from earlybert.kernels import extension

# Elements that one block of threads works on: kLambChunk in csrc/lamb.cuh.
CHUNK = 16384


def usable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can step on these masters: contiguous fp32 on a GPU, extension there."""
    return all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and extension.operators_for(tensor)
        for tensor in tensors
    )


class FusedLambStep:
    """One step on stretches of weights: `advance`, then trust ratios from the norms, then `apply`.

    All arguments hold P contiguous fp32 tensors of one device; position p of each belongs to the same stretch.
    `advance` changes the moments and fills the updates, `apply` changes the weights. 16-byte accesses are used wherever
    the five tensors of a stretch begin at the same offset from a 16-byte border.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        first_moments: Sequence[Tensor],
        second_moments: Sequence[Tensor],
        updates: Sequence[Tensor],
    ) -> None:
        # The kernels see addresses only, so the tensors must live as long as this object.
        self._tensors = list(zip(weights, gradients, first_moments, second_moments, updates, strict=True))
        device = weights[0].device
        rows = [[*(tensor.data_ptr() for tensor in tensors), tensors[0].numel()] for tensors in self._tensors]
        chunks = torch.tensor([-(-row[-1] // CHUNK) for row in rows])
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), chunks.cumsum(0)))
        self._stretches_P6 = torch.tensor(rows, dtype=torch.int64).to(device)
        self._owner_C = torch.arange(len(rows)).repeat_interleave(chunks).to(device, torch.int32)
        self._start_P = starts.to(device, torch.int32)

    def advance(
        self, steps: Sequence[float], betas: tuple[float, float], eps: float, weight_decay: float, bias_correction: bool
    ) -> Tensor:
        """Moments and updates after one more step (`steps` counts it); squared norms of weights and updates.

        The norms are float64, [2, P], of what is here: other ranks' shares are still to be added. The same bits every
        time.
        """
        corrections = []
        for step in steps:
            first, second = (1 - beta**step if bias_correction else 1.0 for beta in betas)
            corrections.append((first / second**0.5, first * eps))
        corrections_P2 = torch.tensor(corrections, dtype=torch.float32).to(self._stretches_P6.device)
        return torch.ops.earlybert.lamb_stage_one(
            self._stretches_P6, corrections_P2, self._owner_C, self._start_P, *betas, weight_decay
        )

    def apply(self, factors: Sequence[float]) -> None:
        """weight += factor * update for every stretch."""
        factors_P = torch.tensor(factors, dtype=torch.float32).to(self._stretches_P6.device)
        torch.ops.earlybert.lamb_stage_two(self._stretches_P6, factors_P, self._owner_C, self._start_P)
