"""One LAMB step on many stretches of tensors, with the ranks' communication left to whoever calls (see `lamb.py`).

`lamb_step` picks the CUDA kernels, or operations of PyTorch where they cannot work. Both advance the moments and form
the updates first, and give the squared norms that trust ratios are made of; then they add the updates, each stretch's
times a factor of its own. The kernels move 28 bytes a parameter in the first part, 12 in the second.

Shape suffixes: P stretches (consecutive elements of one tensor), C chunks of them.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from earlybert.kernels import extension

# Elements that one block of threads works on: kLambChunk in csrc/lamb.cuh.
CUDA_CHUNK = 16384
# On CPUs torch adds up fp32 norms in few lanes: 1e-3 off for the word embeddings of BERT, 3e-7 for this many elements.
NORM_CHUNK = 65536


class LambStep(Protocol):
    """One step: `advance`, then trust ratios from the norms, then `apply`."""

    def advance(
        self, steps: Sequence[float], betas: tuple[float, float], eps: float, weight_decay: float, bias_correction: bool
    ) -> Tensor:
        """Moments and updates after one more step, which `steps` counts; squared norms of weights and updates.

        The norms, [2, P] in float64, the same bits every time, are of what is here: other ranks' are still to be added.
        """

    def apply(self, factors: Sequence[float]) -> None:
        """weight += factor * update for every stretch."""


def lamb_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
) -> LambStep:
    """A step on P stretches, each given as four tensors of one shape, dtype and device.

    `advance` will change the moments and `apply` the weights, in place.
    """
    tensors = weights, gradients, first_moments, second_moments
    kernels = all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and extension.operators_for(tensor)
        for kind in tensors
        for tensor in kind
    )
    return CudaLambStep(*tensors) if kernels else TorchLambStep(*tensors)


class CudaLambStep:
    """Contiguous fp32 stretches on one GPU, in two kernels.

    16-byte accesses are used wherever the four tensors of a stretch begin at the same offset from a 16-byte border.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        first_moments: Sequence[Tensor],
        second_moments: Sequence[Tensor],
    ) -> None:
        self.updates = [_aligned_like(weight) for weight in weights]
        # The kernels see addresses only, so the tensors must live as long as this object.
        self._tensors = list(zip(weights, gradients, first_moments, second_moments, self.updates, strict=True))
        device = weights[0].device
        rows = [[*(tensor.data_ptr() for tensor in tensors), tensors[0].numel()] for tensors in self._tensors]
        chunks = torch.tensor([-(-row[-1] // CUDA_CHUNK) for row in rows])
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), chunks.cumsum(0)))
        self._stretches_P6 = torch.tensor(rows, dtype=torch.int64).to(device)
        self._owner_C = torch.arange(len(rows)).repeat_interleave(chunks).to(device, torch.int32)
        self._start_P = starts.to(device, torch.int32)

    def advance(
        self, steps: Sequence[float], betas: tuple[float, float], eps: float, weight_decay: float, bias_correction: bool
    ) -> Tensor:
        corrections = []
        for step in steps:
            # Both in the denominator: m/c1 / (sqrt(v/c2) + eps) = m / (sqrt(v) c1/sqrt(c2) + c1 eps).
            first, second = (1 - beta**step if bias_correction else 1.0 for beta in betas)
            corrections.append((first / second**0.5, first * eps))
        corrections_P2 = torch.tensor(corrections, dtype=torch.float32).to(self._stretches_P6.device)
        return torch.ops.earlybert.lamb_stage_one(
            self._stretches_P6, corrections_P2, self._owner_C, self._start_P, *betas, weight_decay
        )

    def apply(self, factors: Sequence[float]) -> None:
        factors_P = torch.tensor(factors, dtype=torch.float32).to(self._stretches_P6.device)
        torch.ops.earlybert.lamb_stage_two(self._stretches_P6, factors_P, self._owner_C, self._start_P)


def _aligned_like(tensor: Tensor) -> Tensor:
    """Uninitialised, of as many elements, and as far from a 16-byte border."""
    elements = 16 // tensor.itemsize
    start = tensor.data_ptr() // tensor.itemsize % elements
    return tensor.new_empty(tensor.numel() + elements)[start : start + tensor.numel()]


class TorchLambStep:
    """Any dtype, device and strides, on operations of PyTorch: the reference of the kernels.

    Its fused AdamW does the first part, for AdamW at a rate of -1 adds m / (sqrt(v) + eps) to what it takes for the
    weights: here the updates, which so far are the decay alone.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        first_moments: Sequence[Tensor],
        second_moments: Sequence[Tensor],
    ) -> None:
        # Fused AdamW reads memory in a row.
        kinds = [weights, gradients, first_moments, second_moments]
        self._weights, self._gradients, self._first, self._second = (
            [tensor.contiguous() for tensor in kind] for kind in kinds
        )
        given, used = chain(weights, first_moments, second_moments), chain(self._weights, self._first, self._second)
        self._copied = [(own, copy) for own, copy in zip(given, used, strict=True) if copy is not own]
        self._updates: list[Tensor] = []

    def advance(
        self, steps: Sequence[float], betas: tuple[float, float], eps: float, weight_decay: float, bias_correction: bool
    ) -> Tensor:
        self._updates = list(torch._foreach_mul(self._weights, weight_decay))
        # After infinitely many steps there is nothing left to correct.
        counts_P = torch.tensor(steps if bias_correction else [math.inf] * len(steps), dtype=torch.float32)
        torch._fused_adamw_(
            *(self._updates, self._gradients, self._first, self._second, []),
            list(counts_P.to(self._weights[0].device)),
            lr=-1.0,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return torch.stack([_squared_norms(self._weights), _squared_norms(self._updates)])

    def apply(self, factors: Sequence[float]) -> None:
        for weight, update, factor in zip(self._weights, self._updates, factors, strict=True):
            weight.add_(update, alpha=factor)
        for own, copy in self._copied:
            own.copy_(copy)


def _squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """|tensor|^2 of each of P, [P] in float64."""
    chunks = [tensor.view(-1).split(NORM_CHUNK) for tensor in tensors]
    norms = torch.stack(torch._foreach_norm([chunk for of_tensor in chunks for chunk in of_tensor]))
    # Not index_add_, which adds in any order on a GPU.
    counts = torch.tensor([len(of_tensor) for of_tensor in chunks])
    rows = torch.arange(len(chunks)).repeat_interleave(counts)
    columns = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    squares_PC = norms.new_zeros(len(chunks), int(counts.max()), dtype=torch.float64)
    squares_PC[rows.to(norms.device), columns.to(norms.device)] = norms.double().square_()
    return squares_PC.sum(dim=1)
