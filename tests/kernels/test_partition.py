"""The partition layout, as far as it needs no DeepSpeed; test_under_deepspeed.py has it under every wrapper."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from earlybert.kernels.partition import Partition, Piece, partition_layout, set_step_count, step_count


def test_unknown_wrapper() -> None:
    engine = SimpleNamespace(optimizer=SimpleNamespace(), param_names={})
    with pytest.raises(ValueError, match=r"wraps the optimizer in SimpleNamespace; only .*BF16_Optimizer"):
        partition_layout(engine)


def test_scatter_refuses_another_shape() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    piece = Piece("weight", weight, weight.shape, 0, 0, 6)
    partition = Partition(weight, (piece,), process_group=None)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\), but got values of \(3, 2\)"):
        partition.scatter(piece, torch.ones(3, 2), weight)
    partition.scatter(piece, torch.ones(2, 3, dtype=torch.float64), weight)
    assert (weight == 1).all()


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
