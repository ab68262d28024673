"""One LAMB step on many stretches of tensors, with the ranks' communication left to whoever calls (see `lamb.py`).

`lamb_step` picks the CUDA kernels, or operations of PyTorch where they cannot work. Both advance the moments and form
the updates first, and give the squared norms that trust ratios are made of; then they add the updates, each stretch's
times a factor of its own. The kernels move 28 bytes a parameter in the first part, 12 in the second. Neither waits for
a GPU.

Shape suffixes: P stretches (consecutive elements of one tensor), C chunks of them, F tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.kernels import extension

# Elements that one block of threads works on: kLambChunk in csrc/lamb.cuh.
CUDA_CHUNK = 16384
# On CPUs torch adds up fp32 norms in few lanes: 1e-3 off for the word embeddings of BERT, 3e-7 for this many elements.
NORM_CHUNK = 65536


@dataclass(frozen=True)
class Stretch:
    """Consecutive elements of one of F tensors."""

    tensor: int
    start: int
    numel: int

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        tensor = tensors[self.tensor]
        # A whole tensor needs no view of its elements in a row, which not every tensor can give.
        return tensor if self.numel == tensor.numel() else tensor.view(-1)[self.start : self.start + self.numel]


class Tensors(NamedTuple):
    """F weights, and F tensors of each other kind like them."""

    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    first_moments: Sequence[Tensor]
    second_moments: Sequence[Tensor]


@dataclass(frozen=True)
class Rates:
    """The numbers of one step, which is the group's number `step`, from 1."""

    step: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    bias_correction: bool


class LambStep(Protocol):
    """The steps on P stretches of F tensors, whose places never change: `advance`, then ratios, then `apply`."""

    def advance(self, tensors: Tensors, rates: Rates) -> Tensor:
        """Moments, in place, and updates of one more step on the F tensors; squared norms of weights and updates.

        The norms, [2, P] in float64, the same bits every time, are of what is here: other ranks' are still to be added.
        """

    def apply(self, factors_P: Tensor) -> None:
        """weight += factor * update for every stretch; float64 factors on the tensors' device."""


def lamb_step(stretches: Sequence[Stretch], tensors: Tensors, before: LambStep | None = None) -> LambStep:
    """What steps on stretches of such tensors, of one dtype and device: `before` again, where that still can."""
    kernels = all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and extension.operators_for(tensor)
        for tensor in chain(*tensors)
    )
    kind = CudaLambStep if kernels else TorchLambStep
    return before if type(before) is kind else kind(stretches, tensors.weights[0].device)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A copy of a table in ordinary memory, for which neither the host nor the device waits."""
    return table.clone() if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


class CudaLambStep:
    """Contiguous fp32 tensors on one GPU, in two kernels.

    16-byte accesses are used wherever the four tensors of a stretch begin at the same offset from a 16-byte border.
    """

    def __init__(self, stretches: Sequence[Stretch], device: torch.device) -> None:
        self._tensor_P = torch.tensor([stretch.tensor for stretch in stretches])
        self._start_P1 = torch.tensor([[stretch.start] for stretch in stretches])
        self._numel_P1 = torch.tensor([[stretch.numel] for stretch in stretches])
        chunks = self._numel_P1.flatten().add(CUDA_CHUNK - 1) // CUDA_CHUNK
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), chunks.cumsum(0)))
        self._owner_C = to_device(torch.arange(len(chunks)).repeat_interleave(chunks).int(), device)
        self._chunk_start_P = to_device(starts.int(), device)
        self._addresses: list[list[int]] = []
        self._stretches_P6 = torch.empty(0)
        self.updates: list[Tensor] = []
        # The kernels see addresses only, so the tensors must live until they have run.
        self._kinds: list[Sequence[Tensor]] = []

    def advance(self, tensors: Tensors, rates: Rates) -> Tensor:
        # Not kept between steps, where the memory is wanted for activations.
        self.updates = [_aligned_like(weight) for weight in tensors.weights]
        self._kinds = [*tensors, self.updates]
        addresses = [[tensor.data_ptr() for tensor in kind] for kind in self._kinds]
        if addresses != self._addresses:
            # Most allocators give the same ones step after step.
            begin_P5 = torch.tensor(addresses).T[self._tensor_P]
            table_P6 = torch.cat((begin_P5 + self._start_P1 * self.updates[0].itemsize, self._numel_P1), dim=1)
            self._stretches_P6, self._addresses = to_device(table_P6, self.updates[0].device), addresses
        # Both in the denominator: m/c1 / (sqrt(v/c2) + eps) = m / (sqrt(v) c1/sqrt(c2) + c1 eps).
        first, second = (1 - beta**rates.step if rates.bias_correction else 1.0 for beta in rates.betas)
        numbers = *rates.betas, rates.weight_decay, first / second**0.5, first * rates.eps
        return torch.ops.earlybert.lamb_stage_one(self._stretches_P6, self._owner_C, self._chunk_start_P, *numbers)

    def apply(self, factors_P: Tensor) -> None:
        tables = self._stretches_P6, factors_P.float(), self._owner_C, self._chunk_start_P
        torch.ops.earlybert.lamb_stage_two(*tables)
        self._kinds, self.updates = [], []


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

    def __init__(self, stretches: Sequence[Stretch], device: torch.device) -> None:
        self._stretches = stretches
        # Where the norm of each chunk of a stretch is among all chunks' norms; after the last of them is a zero.
        chunks = [max(1, -(-stretch.numel // NORM_CHUNK)) for stretch in stretches]
        first_P1 = torch.tensor(chunks).cumsum(0)[:, None] - torch.tensor(chunks)[:, None]
        chunk_PC = torch.arange(max(chunks)).expand(len(chunks), -1)
        beyond_PC = chunk_PC >= torch.tensor(chunks)[:, None]
        self._chunk_PC = to_device((first_P1 + chunk_PC).masked_fill(beyond_PC, sum(chunks)), device)
        self._weights: list[Tensor] = []
        self._updates: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    def advance(self, tensors: Tensors, rates: Rates) -> Tensor:
        kinds = [[stretch.of(kind) for stretch in self._stretches] for kind in tensors]
        # Fused AdamW reads memory in a row.
        self._weights, in_row_gradients, first, second = ([tensor.contiguous() for tensor in kind] for kind in kinds)
        given, used = chain(kinds[0], *kinds[2:]), chain(self._weights, first, second)
        self._copied = [(own, copy) for own, copy in zip(given, used, strict=True) if copy is not own]
        self._updates = list(torch._foreach_mul(self._weights, rates.weight_decay))
        # After infinitely many steps there is nothing left to correct.
        count = torch.full((), rates.step if rates.bias_correction else math.inf, device=self._updates[0].device)
        torch._fused_adamw_(
            *(self._updates, in_row_gradients, first, second, []),
            [count] * len(self._updates),
            lr=-1.0,
            beta1=rates.betas[0],
            beta2=rates.betas[1],
            weight_decay=0.0,
            eps=rates.eps,
            amsgrad=False,
            maximize=False,
        )
        return torch.stack([self._squared_norms(self._weights), self._squared_norms(self._updates)])

    def _squared_norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """|tensor|^2 of each of P, [P] in float64."""
        norms = torch._foreach_norm([chunk for tensor in tensors for chunk in tensor.view(-1).split(NORM_CHUNK)])
        # Not index_add_, which adds in any order on a GPU.
        return F.pad(torch.stack(norms).double().square_(), (0, 1))[self._chunk_PC].sum(dim=1)

    def apply(self, factors_P: Tensor) -> None:
        if factors_P.device.type == "cpu":
            for weight, update, factor in zip(self._weights, self._updates, factors_P.tolist(), strict=True):
                weight.add_(update, alpha=factor)
        else:
            factors = factors_P.to(self._weights[0].dtype).unbind()
            torch._foreach_addcmul_(self._weights, self._updates, list(factors))
        for own, copy in self._copied:
            own.copy_(copy)
        self._weights, self._updates, self._copied = [], [], []
