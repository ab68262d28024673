"""Lamb, Muon and the partition layout under every ZeRO stage, on one to four ranks.

In one file, because it starts the ranks once: gather and scatter of masters and moments, and both optimizers against
textbooks in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from earlybert.kernels.lamb_reference import LambReference
from earlybert.kernels.muon_reference import MuonReference
from tests.kernels import emulated, lamb_worker
from tests.kernels.lamb_launch import launch, launches
from tests.kernels.lamb_worker import CASES, SAVED_STEP, STEPS, equal, seeded_model
from tests.kernels.test_lamb import PARITY, assert_same_ratios, largest_difference, ratios_by_name

Expected = tuple[dict[str, Tensor], dict[str, float]]
"""Weights by name, trust ratios by name."""


@launches(lambda name: CASES[name].optimizer not in ("naive", "kernels"))
class TestPartition:
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
            assert len(rank[name].checks) == 5 + (world_size >= 3)
            assert [check for check, passed in rank[name].checks.items() if not passed] == []


@pytest.fixture(scope="module")
def unsharded() -> Expected:
    """Textbook LAMB on whole float64 tensors and whole batches."""
    return train_unsharded(LambReference, lamb_worker.parameter_groups)


@pytest.fixture(scope="module")
def unsharded_muon() -> Expected:
    return train_unsharded(MuonReference, lamb_worker.muon_groups)


def train_unsharded(kind: type[LambReference], groups: Callable[[nn.Module], list[dict[str, Any]]]) -> Expected:
    model = lamb_worker.seeded_model().double()
    textbook = kind(groups(model), lr=lamb_worker.LEARNING_RATE, row_blocks=lamb_worker.row_blocks(model))
    for step in range(lamb_worker.STEPS):
        textbook.zero_grad()
        for tokens_BS in lamb_worker.step_tokens(step):
            (model(tokens_BS) / lamb_worker.ACCUMULATION).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), lamb_worker.CLIP)
        assert norm > 2 * lamb_worker.CLIP, "the test is to cover clipping"
        textbook.step()
    parameters = dict(model.named_parameters())
    return {name: value.detach() for name, value in parameters.items()}, ratios_by_name(textbook, parameters)


def weights(name: str, world_size: int) -> dict[str, Tensor]:
    return {parameter: full[0] for parameter, full in launch(world_size)[0][name].end.items()}


@launches(lambda name: name.startswith("fp32"))
def test_equals_unsharded_lamb(name: str, world_size: int, unsharded: Expected) -> None:
    expected, ratios = unsharded
    assert largest_difference(weights(name, world_size), expected) < PARITY
    for rank in launch(world_size):
        assert_same_ratios(rank[name].trust_ratios, ratios, relative=PARITY)
        assert rank[name].trust_ratios == launch(world_size)[0][name].trust_ratios


@launches(lambda name: name.startswith("muon fp32"))
def test_equals_unsharded_muon(name: str, world_size: int, unsharded_muon: Expected) -> None:
    test_equals_unsharded_lamb(name, world_size, unsharded_muon)


@pytest.mark.skipif(emulated.MISSING is not None, reason=str(emulated.MISSING))
@launches(lambda name: name.startswith("kernels"))
def test_cuda_kernels_equal_unsharded_lamb(name: str, world_size: int, unsharded: Expected) -> None:
    """Emulated, on stretches that ZeRO cut anywhere."""
    test_equals_unsharded_lamb(name, world_size, unsharded)


@launches(lambda name: name.startswith("naive"))
def test_lamb_on_flat_tensors_does_not(name: str, world_size: int, unsharded: Expected) -> None:
    """The tolerance is worth something: one trust ratio for each of ZeRO's tensors misses it by far."""
    assert largest_difference(weights(name, world_size), unsharded[0]) > 1000 * PARITY


@launches(lambda name: name.startswith("direction"))
def test_direction_equals_adamw(name: str, world_size: int) -> None:
    adamw = weights(name.replace("direction", "adamw"), world_size)
    assert largest_difference(weights(name, world_size), adamw) < 1e-5
    assert launch(world_size)[0][name].trust_ratios == {}


COMMUNICATING_GROUPS = {
    "fp32 zero 0": 0,
    "fp32 zero 1": 2,
    "fp32 zero 2": 2,
    "fp32 zero 3": 2,
    "bf16 zero 1, fp32 sums": 2,
    "fp16 zero 2": 2,
    "direction fp32 zero 1": 0,
}
# LAMB's groups, and two for the matrices.
MUONS = {"muon fp32 zero 0": 1, "muon fp32 zero 1": 4, "muon fp32 zero 3": 4, "muon bf16 zero 1, fp32 sums": 4}


@launches(COMMUNICATING_GROUPS.__contains__)
def test_one_collective_per_group_and_step(name: str, world_size: int) -> None:
    """For groups that have trust ratios and are spread over ranks."""
    expected = STEPS * COMMUNICATING_GROUPS[name] if world_size > 1 else 0
    assert [rank[name].collectives for rank in launch(world_size)] == [expected] * world_size


@launches(MUONS.__contains__)
def test_two_collectives_for_all_matrices(name: str, world_size: int) -> None:
    """Before, once, the ranks tell each other what they hold, unless everybody holds everything."""
    learning = int(MUONS[name] > 1)
    expected = STEPS * MUONS[name] + learning if world_size > 1 else 0
    assert [rank[name].collectives for rank in launch(world_size)] == [expected] * world_size


@launches(lambda name: name.startswith("muon"))
def test_each_matrix_is_orthogonalised_by_one_rank(name: str, world_size: int) -> None:
    """Query, key and value, and the output; all have something to do where there are enough for all."""
    matrices = [rank[name].orthogonalised / STEPS for rank in launch(world_size)]
    assert sum(matrices) == 4
    assert world_size > 2 or all(matrices)


@launches(lambda name: "bf16" in name and "adamw" not in name)
def test_bf16_does_not_depend_on_the_number_of_ranks(name: str, world_size: int) -> None:
    assert largest_difference(weights(name, world_size), weights(name, 1)) < PARITY


def test_bf16_stages_agree() -> None:
    """Masters, not bf16 weights, are updated everywhere; the stages add up bf16 gradients in different orders."""
    names = [name for name in CASES if name.startswith("bf16")]
    assert all(largest_difference(weights(name, 2), weights(names[0], 2)) < 2e-3 for name in names)


@launches(lambda name: name.startswith("fp16"))
def test_fp16_is_close_to_fp32(name: str, world_size: int, unsharded: Expected) -> None:
    assert largest_difference(weights(name, world_size), unsharded[0]) < 2e-3
    for rank in launch(world_size):
        assert_same_ratios(rank[name].trust_ratios, unsharded[1], relative=1e-3)


@launches(lambda name: name.startswith("muon fp16"))
def test_fp16_muon_is_close_to_fp32(name: str, world_size: int, unsharded_muon: Expected) -> None:
    assert largest_difference(weights(name, world_size), unsharded_muon[0]) < 2e-3


def test_trust_ratios_do_not_depend_on_the_loss_scale() -> None:
    for rank in launch(2):
        seen, other = rank["fp16 zero 1"], rank["fp16 zero 1, another loss scale"]
        assert (seen.loss_scale, other.loss_scale) == (2**8, 2**12)
        assert_same_ratios(other.trust_ratios, seen.trust_ratios, relative=1e-4)


@launches(lambda name: "fp16" in name)
def test_overflow_skips_the_update_on_all_ranks(name: str, world_size: int) -> None:
    for rank in launch(world_size):
        assert len(rank[name].overflow_checks) == 4
        assert [check for check, passed in rank[name].overflow_checks.items() if not passed] == []
