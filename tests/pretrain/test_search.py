"""Recordings of coefficients, distances between their masks, and when the search stops."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from earlybert.core.errors import UserError
from earlybert.core.files import file_hash
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.plan.recipe import PhaseConfig, Recipe
from earlybert.pretrain.ticket.search import (
    DrawConfig,
    MaskHistory,
    SearchConfig,
    Snapshot,
    draw_from_snapshot,
    load_snapshot,
    recorded_steps,
    save_snapshot,
    snapshot_path,
)
from earlybert.pretrain.ticket.ticket import FullShape, TicketRule
from tests.pretrain.small_models import small_config

LAYERS, HEADS, NEURONS = 3, 4, 40
SHAPE = FullShape(num_layers=LAYERS, num_heads=HEADS, head_size=8, intermediate_size=NEURONS)
RULE = TicketRule(head_ratio=0.25, neuron_ratio=0.3, width_multiple=8)
PHASE = PhaseConfig(
    length=16, max_predictions=3, global_batch=8, micro_batch=4, steps=50, learning_rate=0.01, warmup=0.2
)
DRAW = DrawConfig(**dataclasses.asdict(RULE))
RECIPE = Recipe(phase1=PHASE, phase2=PHASE, draw=DRAW, seed=17)


def snapshot(step: int, seed: int | None = None, noise: float = 1.0) -> Snapshot:
    """Coefficients that are common to all seeds but for noise."""
    common, own = np.random.default_rng(99), np.random.default_rng(step if seed is None else seed)

    def values(units: int) -> np.ndarray:
        mixed = common.standard_normal((LAYERS, units)) + noise * own.standard_normal((LAYERS, units))
        return (1 + 0.01 * mixed).astype(np.float32)

    return Snapshot(step, values(HEADS), values(NEURONS))


def history(tmp_path: Path, *, window: int = 0, threshold: float = 0.1, up_to_step: int = 1_000) -> MaskHistory:
    return MaskHistory(tmp_path, RULE, SearchConfig(stop_window=window, stop_threshold=threshold), up_to_step)


# --- recordings ------------------------------------------------------------------------------------------------------


def test_snapshot_sorts_layers_by_number() -> None:
    """Twelve layers, so that the order of names (layers.10 before layers.2) would be wrong, and given shuffled."""
    config = small_config(num_hidden_layers=12, searching=True)
    names = [name for name in parameter_shapes(config) if name.endswith("coefficients")]
    masters = {}
    for name in np.random.default_rng(0).permutation(names).tolist():
        units, layer = parameter_shapes(config)[name][0], int(name.split(".")[1])
        masters[name] = torch.arange(units) + 1000.0 * layer + (0.5 if "attention" in name else 0.0)
    found = Snapshot.from_masters(30, masters)
    assert found.step == 30
    assert np.array_equal(found.heads_LU, [[1000 * layer + i + 0.5 for i in range(4)] for layer in range(12)])
    assert np.array_equal(found.neurons_LU, [[1000 * layer + i for i in range(48)] for layer in range(12)])


def test_snapshot_does_not_follow_the_live_parameter() -> None:
    live = {
        "layers.0.attention.output.coefficients": torch.ones(4),
        "layers.0.feed_forward.output.coefficients": torch.ones(48),
    }
    found = Snapshot.from_masters(1, live)
    for parameter in live.values():
        parameter.zero_()
    assert (found.heads_LU == 1).all() and (found.neurons_LU == 1).all()


def test_file_gives_the_same_recording_back(tmp_path: Path) -> None:
    recorded = snapshot(40)
    save_snapshot(tmp_path / "search", recorded)
    found = load_snapshot(snapshot_path(tmp_path / "search", 40))
    assert found.step == 40 and found.heads_LU.dtype == np.float32
    assert np.array_equal(found.heads_LU, recorded.heads_LU)
    assert np.array_equal(found.neurons_LU, recorded.neurons_LU)
    assert [path.name for path in (tmp_path / "search").iterdir()] == ["step-000040.safetensors"]


def test_steps_are_listed_by_number(tmp_path: Path) -> None:
    for step in (1_000_000, 20, 0, 999_999):
        save_snapshot(tmp_path, snapshot(step))
    (tmp_path / "step-000020 (copy).safetensors").touch()
    assert recorded_steps(tmp_path) == [0, 20, 999_999, 1_000_000]
    assert recorded_steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other tensors"])
def test_damaged_recordings_are_named(tmp_path: Path, damage: str) -> None:
    save_snapshot(tmp_path, snapshot(20))
    path = snapshot_path(tmp_path, 20)
    if damage == "other tensors":
        safetensors.numpy.save_file({"weights": np.ones(3)}, path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-50], "empty": b"", "text": b"not tensors" * 9}[damage])
    with pytest.raises(UserError) as caught:
        load_snapshot(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- masks and distances ---------------------------------------------------------------------------------------------


def test_masks_leave_the_width_multiple_out() -> None:
    found = snapshot(1).masks(RULE)
    assert int((~found["neurons"]).sum()) == round(0.3 * LAYERS * NEURONS)
    assert (~found["heads"]).sum(axis=1).tolist() == [1] * LAYERS


def brute_force_distance(first: np.ndarray, second: np.ndarray) -> float:
    pairs = list(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    return sum(one != other for one, other in pairs) / len(pairs)


def brute_force_mask(coefficients: np.ndarray, pruned: int) -> np.ndarray:
    return coefficients > np.sort(coefficients.ravel())[pruned - 1]


def test_distances_are_those_of_brute_force(tmp_path: Path) -> None:
    recordings = [snapshot(step) for step in (5, 10, 15, 20)]
    found = history(tmp_path)
    for recorded in recordings:
        found.add(recorded)
    neurons = [brute_force_mask(recorded.neurons_LU, 36) for recorded in recordings]
    heads = [np.stack([brute_force_mask(row, 1) for row in recorded.heads_LU]) for recorded in recordings]
    newest = found.newest_distances()
    assert newest["neurons"] == pytest.approx([brute_force_distance(mask, neurons[-1]) for mask in neurons[:-1]])
    assert newest["heads"] == pytest.approx([brute_force_distance(mask, heads[-1]) for mask in heads[:-1]])
    assert max(newest["neurons"]) > 0.1
    found.save()
    content = json.loads((tmp_path / "mask_distance.json").read_text())
    assert content["steps"] == [5, 10, 15, 20]
    for kind, masks in (("heads", heads), ("neurons", neurons)):
        expected = [[brute_force_distance(one, other) for other in masks] for one in masks]
        assert np.allclose(content[kind], expected)


def test_first_recording_has_nothing_to_differ_from(tmp_path: Path) -> None:
    found = history(tmp_path, window=1)
    found.add(snapshot(5))
    assert found.newest_distances() == {"heads": [], "neurons": []}
    assert not found.settled()


def test_history_begins_with_what_was_recorded_up_to_the_checkpoint(tmp_path: Path) -> None:
    for step in (0, 5, 10, 15, 20):
        save_snapshot(tmp_path, snapshot(step))
    resumed = history(tmp_path, up_to_step=10)
    assert resumed.steps == [0, 5, 10]
    for step in (0, 5, 10):
        expected = snapshot(step).masks(RULE)
        found = resumed.masks[resumed.steps.index(step)]
        assert all(np.array_equal(found[kind], expected[kind]) for kind in ("heads", "neurons"))


# --- when to stop ----------------------------------------------------------------------------------------------------


def settles_at(found: MaskHistory, recordings: list[Snapshot]) -> list[int]:
    """Steps at which the search would stop."""
    stops = []
    for recorded in recordings:
        found.add(recorded)
        if found.settled():
            stops.append(recorded.step)
    return stops


def same_mask(step: int) -> Snapshot:
    return dataclasses.replace(snapshot(0, seed=1), step=step)


def test_search_settles_when_the_window_agrees(tmp_path: Path) -> None:
    """Masks differ until step 15 and stay from step 20 on: at 30 the newest agrees with the two before it."""
    recordings = [snapshot(5), snapshot(10), snapshot(15), *(same_mask(step) for step in (20, 25, 30, 35))]
    assert settles_at(history(tmp_path, window=2, threshold=0.0), recordings) == [30, 35]
    assert settles_at(history(tmp_path, window=3, threshold=0.0), recordings) == [35]
    assert settles_at(history(tmp_path, window=4, threshold=0.0), recordings) == []


def test_window_of_zero_never_stops(tmp_path: Path) -> None:
    assert settles_at(history(tmp_path, window=0, threshold=1.0), [same_mask(step) for step in range(1, 9)]) == []


def test_recording_before_the_first_update_does_not_count(tmp_path: Path) -> None:
    recordings = [same_mask(step) for step in (0, 5, 10, 15)]
    assert settles_at(history(tmp_path, window=2, threshold=0.0), recordings) == [15]


def flipped(recorded: Snapshot, kind: str, exchanges: int) -> Snapshot:
    """Exchanges the weakest kept with the strongest pruned units of one kind: two differences each."""
    values = getattr(recorded, f"{kind}_LU").copy()
    flat = values[0] if kind == "heads" else values.reshape(-1)
    kept = recorded.masks(RULE)[kind]
    kept = kept[0] if kind == "heads" else kept.reshape(-1)
    order = np.argsort(flat)
    pruned_units, kept_units = [u for u in order if not kept[u]], [u for u in order if kept[u]]
    for one, other in zip(pruned_units[::-1][:exchanges], kept_units[:exchanges], strict=True):
        flat[[one, other]] = flat[[other, one]]
    return dataclasses.replace(recorded, **{f"{kind}_LU": values})


@pytest.mark.parametrize(
    ("kind", "exchanges", "distance"), [("neurons", 3, 6 / (LAYERS * NEURONS)), ("heads", 1, 2 / (LAYERS * HEADS))]
)
def test_threshold_is_the_largest_distance_that_agrees(
    tmp_path: Path, kind: str, exchanges: int, distance: float
) -> None:
    """Either kind alone holds the search up."""
    recordings = [same_mask(5), dataclasses.replace(flipped(same_mask(5), kind, exchanges), step=10)]
    found = history(tmp_path)
    for recorded in recordings:
        found.add(recorded)
    assert found.newest_distances()[kind] == [pytest.approx(distance)]
    assert settles_at(history(tmp_path, window=1, threshold=distance), recordings) == [10]
    assert settles_at(history(tmp_path, window=1, threshold=distance - 1e-6), recordings) == []


def test_every_mask_of_the_window_must_agree(tmp_path: Path) -> None:
    """Each differs little from the one before, but the newest differs more from the oldest."""
    first = same_mask(5)
    second = dataclasses.replace(flipped(first, "neurons", 2), step=10)
    third = dataclasses.replace(flipped(first, "neurons", 4), step=15)
    threshold = 4 / (LAYERS * NEURONS)
    assert settles_at(history(tmp_path, window=1, threshold=threshold), [first, second, third]) == [10, 15]
    assert settles_at(history(tmp_path, window=2, threshold=threshold), [first, second, third]) == []


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_ticket_of_a_recorded_step(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_snapshot(tmp_path, snapshot(step))
    ticket = draw_from_snapshot(tmp_path, 10, SHAPE, RECIPE.draw, RECIPE.seed)
    source = ticket.source
    assert (source.kind, source.stage, source.step, source.seed) == ("search", "search", 10, 17)
    assert source.coefficients_sha256 == file_hash(snapshot_path(tmp_path, 10))
    assert ticket.rule == RULE
    for layer, row in enumerate(snapshot(10).heads_LU):
        assert ticket.heads[layer] == tuple(sorted(np.argsort(row)[1:].tolist()))
    for row, kept in zip(snapshot(10).neurons_LU, ticket.neurons, strict=True):
        assert len(kept) % 8 == 0 and set(kept) == set(np.argsort(row)[-len(kept) :].tolist())


def test_last_recording_is_drawn_from_by_default(tmp_path: Path) -> None:
    for step in (5, 15, 10):
        save_snapshot(tmp_path, snapshot(step))
    found, last = (draw_from_snapshot(tmp_path, step, SHAPE, RECIPE.draw, RECIPE.seed) for step in (None, 15))
    assert found == last


def refusal(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        draw_from_snapshot(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_step_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    for step in (5, 10):
        save_snapshot(tmp_path, snapshot(step))
    message = refusal(tmp_path, 7, SHAPE, RECIPE.draw, RECIPE.seed)
    assert "step-000007" in message and "[5, 10]" in message


def test_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert "no coefficient recordings" in refusal(folder, None, SHAPE, RECIPE.draw, RECIPE.seed)


def test_recording_of_another_model_is_refused(tmp_path: Path) -> None:
    save_snapshot(tmp_path, snapshot(5))
    other = dataclasses.replace(SHAPE, num_layers=4)
    assert "needs [4, 4]" in refusal(tmp_path, None, other, RECIPE.draw, RECIPE.seed)
