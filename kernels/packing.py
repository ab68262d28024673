"""Batches without padding: the tokens of all sequences one after the other.

Shape suffixes: B sequences, T tokens of all sequences together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """How T packed rows divide into sequences of at least one row each.

    `lengths` are on the host, so that nobody has to wait for a GPU to know them; `bounds` (int32, [B + 1]) are the
    cumulative lengths where the rows lie, beginning with 0; `longest` is the largest length. A compiled graph that
    reads bounds and longest alone serves any lengths.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    longest: int

    @staticmethod
    def of(lengths: Sequence[int]) -> "Packing":
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return Packing(tuple(lengths), bounds, max(lengths, default=0))

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def to(self, device: torch.device) -> "Packing":
        return Packing(self.lengths, self.bounds.to(device, non_blocking=True), self.longest)
