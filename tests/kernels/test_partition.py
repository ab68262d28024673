"""The partition layout, as far as it needs no DeepSpeed; test_under_deepspeed.py has it under every wrapper."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from earlybert.kernels import partition
from earlybert.kernels.partition import Partition, Piece, partition_layout, set_step_count, step_count


def test_unknown_wrapper() -> None:
    engine = SimpleNamespace(optimizer=SimpleNamespace(), param_names={})
    with pytest.raises(ValueError, match=r"wraps the optimizer in SimpleNamespace; only .*BF16_Optimizer"):
        partition_layout(engine)


def test_scatter_refuses_another_shape() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    piece = Piece("weight", weight, weight.shape, 0, 0, 6)
    whole = Partition(weight, (piece,), process_group=None)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\), but got values of \(3, 2\)"):
        whole.scatter(piece, torch.ones(3, 2), weight)
    whole.scatter(piece, torch.ones(2, 3, dtype=torch.float64), weight)
    assert (weight == 1).all()


def test_gathers_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one after the other: the second adds what the first sent. Borders of chunks cut both stretches."""
    monkeypatch.setattr(partition, "_CHUNK", 4)
    full = (torch.arange(15.0) - 7).view(3, 5)
    full[1, 1] = -0.0
    weight, group = nn.Parameter(full), cast("ProcessGroup", object())
    first, second = (Piece("weight", weight, full.shape, *place) for place in ((2, 0, 7), (1, 7, 8)))
    flats = [torch.full((12,), 50.0), torch.full((12,), 60.0)]
    sent: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda chunk, group: sent.append(chunk.clone()))
    first.of(flats[0]).copy_(full.flatten()[:7])
    Partition(flats[0], (first,), group).gather(first, flats[:1])
    assert [len(chunk) for chunk in sent] == [4, 4, 4, 3]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda chunk, group: chunk.add_(sent.pop(0)))
    second.of(flats[1]).copy_(full.flatten()[7:])
    gathered = Partition(flats[1], (second,), group).gather(second, flats[1:])
    assert gathered is not None and torch.equal(gathered[0].view(torch.int32), full.view(torch.int32))


def test_step_count() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    assert step_count(optimizer) == 0
    weight.grad = torch.ones(3)
    optimizer.step()
    assert step_count(optimizer) == 1
    set_step_count(optimizer, 7)
    optimizer.step()
    assert step_count(optimizer) == 8


def test_step_count_is_that_of_the_tensor_that_took_most() -> None:
    often, once = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([often, once])
    for step in range(3):
        often.grad, once.grad = torch.ones(3), torch.ones(3) if step == 1 else None
        optimizer.step()
    assert step_count(optimizer) == 3
