"""Matrices that ranks hold parts of: each is put together on one rank, changed there, and its parts go back.

Shape suffixes: M matrices, E elements of all that this rank owns, B matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from earlybert.kernels.ownership import assign_owners, newton_schulz_flops
from earlybert.kernels.partition import Piece

# Elements of equal matrices that are changed together: enough to keep a GPU busy, few enough to spare memory.
BATCH_ELEMENTS = 1 << 24


class _Part(NamedTuple):
    """What one rank holds of one matrix: consecutive elements."""

    rank: int
    matrix: int
    start: int
    numel: int


class MatrixExchange:
    """Which rank owns which matrix, and the ways of all parts to the owners and back.

    Args:
        pieces: All matrices, in the same order on all ranks, with what this rank holds of each.
        process_group: The ranks; None where there is but one.
        replicated: Every rank holds every matrix whole; otherwise each element is held by one rank.
        device: Where the ranks communicate.
    """

    def __init__(
        self, pieces: Sequence[Piece], process_group: ProcessGroup | None, *, replicated: bool, device: torch.device
    ) -> None:
        self._process_group, self._replicated, self._device = process_group, replicated, device
        self._shapes = [piece.shape for piece in pieces]
        self._ranks = torch.distributed.get_world_size(process_group) if process_group else 1
        rank = torch.distributed.get_rank(process_group) if process_group else 0
        parts = self._parts(pieces)
        held = [[0] * len(pieces) for _ in range(self._ranks)]
        for part in parts:
            held[part.rank][part.matrix] = part.numel
        owners = assign_owners([newton_schulz_flops(*shape) for shape in self._shapes], held)
        mine = [matrix for matrix, owner in enumerate(owners) if owner == rank]
        self._owned = sorted(mine, key=lambda matrix: self._shapes[matrix])  # equal ones side by side
        # In the order in which they travel.
        self._here = sorted((part for part in parts if part.rank == rank), key=lambda part: owners[part.matrix])
        self._wanted = [part for part in parts if owners[part.matrix] == rank]
        self._to_owners, self._from_holders = [0] * self._ranks, [0] * self._ranks
        for part in self._here:
            self._to_owners[owners[part.matrix]] += part.numel
        for part in self._wanted:
            self._from_holders[part.rank] += part.numel

    def _parts(self, pieces: Sequence[Piece]) -> list[_Part]:
        """Those of all ranks, by rank and matrix."""
        own_M2 = torch.tensor([[piece.parameter_start, piece.numel] for piece in pieces], device=self._device)
        places = [own_M2] * self._ranks
        if self._process_group is not None and not self._replicated:
            places = [torch.empty_like(own_M2) for _ in range(self._ranks)]
            torch.distributed.all_gather(places, own_M2, group=self._process_group)
        return [
            _Part(rank, matrix, start, numel)
            for rank, places_M2 in enumerate(places)
            for matrix, (start, numel) in enumerate(places_M2.tolist())
            if numel
        ]

    def changed(self, parts: Sequence[Tensor], dtype: torch.dtype, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What is here of all matrices [R, C] after `change`, which each goes through on its owner.

        Args:
            parts: What is here of the matrices, of those that have anything here; their order is that of the pieces.
            dtype: In which they travel.
            change: From equal matrices [B, R, C] to others.

        Returns:
            Like `parts`, in one dimension and in `dtype`. All ranks must call it.
        """
        own = dict(zip(sorted(part.matrix for part in self._here), parts, strict=True))
        owned_E = self._gathered(own, dtype)
        for batch_BRC in self._batches(owned_E):
            batch_BRC.copy_(change(batch_BRC))
        back = self._given_back(owned_E)
        return [back[matrix] for matrix in own]

    def _gathered(self, own: dict[int, Tensor], dtype: torch.dtype) -> Tensor:
        """The owned matrices [E], end to end."""
        if self._process_group is None or self._replicated:
            return self._joined((own[matrix] for matrix in self._owned), dtype)
        sent = self._joined((own[part.matrix] for part in self._here), dtype)
        received = self._all_to_all(sent, self._to_owners, self._from_holders)
        pieces = zip(self._wanted, received.split([part.numel for part in self._wanted]), strict=True)
        by_place = {(part.matrix, part.start): piece for part, piece in pieces}
        in_order = sorted(by_place, key=lambda place: (self._shapes[place[0]], place))
        return self._joined((by_place[place] for place in in_order), dtype)

    def _batches(self, owned_E: Tensor) -> Iterator[Tensor]:
        """Views [B, R, C] of equal matrices."""
        begin = 0
        for shape, matrices in groupby(self._owned, key=lambda matrix: self._shapes[matrix]):
            equal_BRC = owned_E[begin:][: len(list(matrices)) * shape.numel()].view(-1, *shape)
            begin += equal_BRC.numel()
            yield from equal_BRC.split(max(1, BATCH_ELEMENTS // shape.numel()))

    def _given_back(self, owned_E: Tensor) -> dict[int, Tensor]:
        """By matrix, what belongs here of all matrices."""
        numels = [self._shapes[matrix].numel() for matrix in self._owned]
        whole = dict(zip(self._owned, owned_E.split(numels), strict=True))
        if self._process_group is None:
            return whole
        sent = self._joined(
            (whole[part.matrix][part.start : part.start + part.numel] for part in self._wanted), owned_E.dtype
        )
        received = self._all_to_all(sent, self._from_holders, self._to_owners)
        pieces = received.split([part.numel for part in self._here])
        return {part.matrix: piece for part, piece in zip(self._here, pieces, strict=True)}

    def _joined(self, tensors: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
        flat = [tensor.flatten() for tensor in tensors]
        return torch.cat(flat).to(dtype) if flat else torch.empty(0, dtype=dtype, device=self._device)

    def _all_to_all(self, sent: Tensor, sent_numels: list[int], received_numels: list[int]) -> Tensor:
        """Sends so many elements of the flat `sent` to each rank, in their order; returns what they sent, flat too."""
        received = sent.new_empty(sum(received_numels))
        torch.distributed.all_to_all_single(received, sent, received_numels, sent_numels, group=self._process_group)
        return received
