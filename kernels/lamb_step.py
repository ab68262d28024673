"""One LAMB step on many stretches of tensors, with the ranks' communication left to whoever calls (see `lamb.py`).

`lamb_step` picks the CUDA kernels, or PyTorch's multi-tensor operations where they cannot work. Both advance the
moments and form the updates first, and give the squared norms that trust ratios are made of; then they add the updates,
each stretch's times a factor of its own. By bytes that is 28 a parameter for the first part, 12 for the second.

Shape suffixes: P stretches (consecutive elements of one tensor), C chunks of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from earlybert.kernels import extension

# Elements that one block of threads works on: kLambChunk in csrc/lamb.cuh.
CUDA_CHUNK = 16384
# Elements for which PyTorch's operations take turns on a CPU, so that all of them find these in the cache. On CPUs
# PyTorch also adds up fp32 norms in few lanes: 1e-3 off for the word embeddings of BERT, 3e-7 for this many elements.
CPU_SLAB = 65536

Corrections = Sequence[tuple[float, float]]
"""For every stretch what the root of its second moment is multiplied with, and what is added then."""


def bias_corrections(
    steps: Sequence[float], betas: tuple[float, float], eps: float, bias_correction: bool
) -> Corrections:
    """Both corrections in the denominator: m/c1 / (sqrt(v/c2) + eps) = m / (sqrt(v) c1/sqrt(c2) + c1 eps).

    `steps` counts the step that is about to be taken.
    """
    corrections = []
    for step in steps:
        first, second = (1 - beta**step if bias_correction else 1.0 for beta in betas)
        corrections.append((first / second**0.5, first * eps))
    return corrections


class LambStep(Protocol):
    """One step: `advance`, then trust ratios from the norms, then `apply`."""

    def advance(self, corrections: Corrections, betas: tuple[float, float], weight_decay: float) -> Tensor:
        """Moments and updates; squared norms of weights and updates, [2, P] in float64, the same bits every time.

        The norms are of what is here: other ranks' shares are still to be added.
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

    def advance(self, corrections: Corrections, betas: tuple[float, float], weight_decay: float) -> Tensor:
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


@dataclass(frozen=True)
class _Slabs:
    """What one round of operations works on: rows of stretches `owners`; `updates` are filled in that round."""

    owners: list[int]
    weights: list[Tensor]
    gradients: list[Tensor]
    first_moments: list[Tensor]
    second_moments: list[Tensor]
    updates: list[Tensor] = field(default_factory=list)


class TorchLambStep:
    """Any dtype, device and strides, on multi-tensor operations: all stretches in one round on a GPU, slabs on a CPU.

    The reference of the kernels.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        first_moments: Sequence[Tensor],
        second_moments: Sequence[Tensor],
    ) -> None:
        tensors = list(zip(weights, gradients, first_moments, second_moments, strict=True))
        self._device = weights[0].device
        if self._device.type == "cpu":
            self._rounds = [
                _Slabs([owner], *([slab] for slab in slabs))
                for owner, stretch in enumerate(tensors)
                for slabs in zip(*map(_slabs, stretch), strict=True)
            ]
        else:
            self._rounds = [_Slabs(list(range(len(tensors))), *map(list, zip(*tensors, strict=True)))]
        self._stretches = len(tensors)

    def advance(self, corrections: Corrections, betas: tuple[float, float], weight_decay: float) -> Tensor:
        beta1, beta2 = betas
        weight_norms, update_norms = _Norms([], []), _Norms([], [])
        for slabs in self._rounds:
            first, second = slabs.first_moments, slabs.second_moments
            torch._foreach_lerp_(first, slabs.gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, slabs.gradients, slabs.gradients, 1 - beta2)
            denominators = torch._foreach_sqrt(second)
            torch._foreach_mul_(denominators, [corrections[owner][0] for owner in slabs.owners])
            torch._foreach_add_(denominators, [corrections[owner][1] for owner in slabs.owners])
            slabs.updates[:] = torch._foreach_div(first, denominators)
            if weight_decay:
                torch._foreach_add_(slabs.updates, slabs.weights, alpha=weight_decay)
            weight_norms.take(slabs.owners, slabs.weights)
            update_norms.take(slabs.owners, slabs.updates)
        return torch.stack([norms.squares(self._stretches, self._device) for norms in (weight_norms, update_norms)])

    def apply(self, factors: Sequence[float]) -> None:
        for slabs in self._rounds:
            torch._foreach_mul_(slabs.updates, [factors[owner] for owner in slabs.owners])
            torch._foreach_add_(slabs.weights, slabs.updates)


def _slabs(tensor: Tensor) -> Sequence[Tensor]:
    """Views of about CPU_SLAB elements, cut along the first dimension, so that strides do not matter."""
    tensor = torch.atleast_1d(tensor)
    return tensor.split(max(1, CPU_SLAB // max(1, tensor[:1].numel())))


class _Norms(NamedTuple):
    """Norms of pieces of stretches, and whose they are."""

    norms: list[Tensor]
    owners: list[int]

    def take(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        chunks = [tensor.reshape(-1).split(CPU_SLAB) for tensor in tensors]
        self.norms.extend(torch._foreach_norm([chunk for of_tensor in chunks for chunk in of_tensor]))
        self.owners.extend(owner for owner, of_tensor in zip(owners, chunks, strict=True) for _ in of_tensor)

    def squares(self, stretches: int, device: torch.device) -> Tensor:
        """|stretch|^2 of each, [P] in float64."""
        seen: Counter[int] = Counter()
        places = []
        for owner in self.owners:
            places.append((owner, seen[owner]))
            seen[owner] += 1
        # Not index_add_, which adds in any order on a GPU.
        squares_PC = torch.zeros(stretches, max(seen.values()), dtype=torch.float64, device=device)
        rows, columns = torch.tensor(places, device=device).T
        squares_PC[rows, columns] = torch.stack(self.norms).double().square_()
        return squares_PC.sum(dim=1)
