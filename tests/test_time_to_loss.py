"""The race's arithmetic, on curves whose answers are known; how its calls end."""

import json
import sys
import time
from pathlib import Path

import pytest
from race.arms import write_recipe
from race.outcome import curve, race, reached, spread
from time_to_loss import train


def test_a_loss_is_reached_between_two_validations() -> None:
    found: dict[str, list[float]] = {"steps": [100, 200, 300], "loss": [6.0, 5.0, 4.0]}
    assert reached(found, "steps", 4.5) == pytest.approx(250)
    assert reached(found, "steps", 6.5) == 100
    assert reached(found, "steps", 4.0) == 300
    assert reached(found, "steps", 3.9) is None
    assert reached({"steps": [1, 2, 3], "loss": [5.0, 7.0, 6.0]}, "steps", 6.5) == 1


def write_run(folder: Path, stages: dict[str, tuple[int, float]], losses: list[tuple[str, int, float]]) -> None:
    """A run of stages, (steps, FLOPs a step) each, and of validations, (stage, step, loss), one a second."""
    folder.mkdir()
    described = [{"name": name, "steps": steps, "flops_per_step": flops} for name, (steps, flops) in stages.items()]
    (folder / "plan.json").write_text(json.dumps({"stages": described}))
    lines = [{"kind": "start", "time": 0.0, "global_step": 0, "ranks": 1, "device": "CPU"}]
    before = dict.fromkeys(stages, 0)
    for name, following in zip(list(stages), list(stages)[1:], strict=False):
        before[following] = before[name] + stages[name][0]
    for second, (stage, step, loss) in enumerate(losses, start=1):
        scores = {"loss": loss, "masked_loss": loss, "masked_accuracy": 1 / loss, "next_sentence_accuracy": None}
        place = {"stage": stage, "step": step, "global_step": before[stage] + step}
        lines.append({"kind": "validation", "time": float(second), **place, **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    """A search of 10 dense steps, then narrow ones at 0.7 of the FLOPs and 0.8 of the time."""
    stages = {"search": (10, 100.0), "phase1": (20, 70.0)}
    losses = [("search", 10, 7.0), ("phase1", 10, 6.0), ("phase1", 20, 5.0)]
    write_run(tmp_path / "early", stages, losses)
    found = curve(tmp_path / "early", {"search": 1.0, "phase1": 0.8})
    assert found["steps"] == [10, 20, 30]
    assert found["flops"] == pytest.approx([1000, 1700, 2400])
    assert found["medians"] == pytest.approx([10, 18, 26])
    assert found["clock"] == [1, 2, 3]
    write_run(tmp_path / "dense", {"phase1": (30, 100.0)}, [("phase1", 15, 6.5), ("phase1", 30, 5.5)])
    dense = curve(tmp_path / "dense", {"phase1": 1.0})
    table = race({"dense": {0: dense, 1: dense}, "early": {0: found, 2: found}})
    assert table["early"]["seed"] == [0]  # without a dense run of its seed there is nothing to compare
    assert table["early"]["flops"] == [pytest.approx(2400 / 3000)]
    assert table["early"]["medians_to_dense_loss"] == [pytest.approx(22 / 30)]
    assert table["early"]["flops_to_dense_loss"] == [pytest.approx(2050 / 3000)]
    # After 26 seconds the dense run is 11 of the 15 steps from 6.5 to 5.5.
    assert table["early"]["dense_loss_then"] == [pytest.approx(6.5 - 11 / 15)]
    assert table["dense"]["medians_to_dense_loss"] == [1.0, 1.0]


def test_never_reached_is_said() -> None:
    assert spread([None, None], ".2f") == "not reached"
    assert spread([0.5, None, 0.7], ".2f") == "0.60 ± 0.14 (2 of 3)"
    assert spread([0.5], ".2f") == "0.50"


def test_an_arm_is_asked_to_stop_when_the_budget_ends() -> None:
    began = time.monotonic()
    train([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)  # before it listens to any signal
    assert time.monotonic() - began < 30
    with pytest.raises(SystemExit, match="status 3"):
        train([sys.executable, "-c", "raise SystemExit(3)"], 30)


def test_all_calls_have_one_recipe(tmp_path: Path) -> None:
    write_recipe("cpu", tmp_path, {"phase1.steps": 30})
    write_recipe("cpu", tmp_path, {"phase1.steps": 40, "seed": 3})  # nothing has begun
    (tmp_path / "dense-seed0").mkdir()
    path = write_recipe("cpu", tmp_path, {"phase1.steps": 40, "seed": 3})
    with pytest.raises(SystemExit, match="has another phase1 and phase2 and seed, and runs have begun with it"):
        write_recipe("cpu", tmp_path, {"phase1.steps": 30})
    assert "steps: 40" in path.read_text()
