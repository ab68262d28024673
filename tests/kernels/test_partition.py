"""The partition layout of every DeepSpeed wrapper: gather and scatter masters and moments, on one and two ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from earlybert.kernels.partition import Partition, Piece, partition_layout, set_step_count, step_count
from tests.kernels.lamb_launch import launch, launches
from tests.kernels.lamb_worker import CASES, SAVED_STEP, STEPS, equal, seeded_model


@launches(lambda name: CASES[name].optimizer not in ("naive", "kernels"))
class TestUnderDeepSpeed:
    def test_wrapper_is_the_one_meant(self, name: str, world_size: int) -> None:
        assert launch(world_size)[0][name].wrapper == CASES[name].wrapper

    def test_starts_from_the_models_weights(self, name: str, world_size: int) -> None:
        """Not moved by a step that a wrapper's constructor took; moments are zero."""
        start = launch(world_size)[0][name].start
        initial = {
            key: weight.detach().to(CASES[name].dtype).float() for key, weight in seeded_model().named_parameters()
        }
        assert equal({key: full[0] for key, full in start.items()}, initial)
        assert not any(full[1:].any() for full in start.values())

    def test_every_rank_gathers_the_same(self, name: str, world_size: int) -> None:
        first, *others = launch(world_size)
        for rank in others:
            assert equal(rank[name].saved, first[name].saved)
            assert equal(rank[name].end, first[name].end)

    def test_counts_the_steps(self, name: str, world_size: int) -> None:
        assert all(rank[name].step_count == STEPS for rank in launch(world_size))

    def test_trains(self, name: str, world_size: int) -> None:
        """Masters and both moments of everything that has a gradient differ between the two points."""
        seen = launch(world_size)[0][name]
        assert STEPS > SAVED_STEP
        for key in seen.end.keys() - {"unused"}:
            assert (seen.end[key] != seen.saved[key]).flatten(1).any(1).all(), key

    def test_checks_made_by_the_ranks(self, name: str, world_size: int) -> None:
        for rank in launch(world_size):
            assert len(rank[name].checks) == 5 + (world_size == 3)
            assert [check for check, passed in rank[name].checks.items() if not passed] == []


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
