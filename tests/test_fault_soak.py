"""A short fault soak on the tests' recipe, and whether its comparison would notice what it is there to notice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from soak.comparison import compare

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_run_survives_a_short_soak(workplace: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fault_soak.py"), "--config", "small.yaml", "--seed", "3"]
    command += ["--search.steps", "30", "--phase1.steps", "30", "--phase2.steps", "10"]
    command += ["--seconds", "30", "--work-dir", "soak", "--out", "soak.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((workplace / "soak.json").read_text())
    assert {round_["kind"] for round_ in report["rounds"]} == {"same layout", "changing layout"}
    # The first start has a full disk and then a signal; every round has a fault, however slow the machine.
    kinds = [strike["kind"] for strike in report["strikes"]]
    assert kinds[0] == "full disk" and len(kinds) >= 2
    assert all(strike["came_of_it"] for strike in report["strikes"])
    assert all(round_["starts"] >= 2 for round_ in report["rounds"])


@pytest.fixture
def other_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "other"))


@pytest.mark.parametrize("same_layout", [True, False])
def test_a_copy_is_equal(finished_run: Path, other_run: Path, same_layout: bool) -> None:
    problems, differences = compare(finished_run, other_run, same_layout=same_layout)
    assert problems == []
    assert same_layout or differences["loss_difference"] == {"search": 0, "phase1": 0, "phase2": 0}


@pytest.mark.parametrize("same_layout", [True, False])
def test_a_lost_and_a_repeated_step_are_named(finished_run: Path, other_run: Path, same_layout: bool) -> None:
    lines = (other_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    repeated = next(index for index, line in enumerate(lines) if '"train"' in line and '"global_step": 7,' in line)
    lost = next(index for index, line in enumerate(lines) if '"train"' in line and '"global_step": 9,' in line)
    lines[lost] = lines[repeated]
    (other_run / "metrics.jsonl").write_text("".join(lines))
    problems, _ = compare(finished_run, other_run, same_layout=same_layout)
    assert problems == [
        "train of step 7 stands 2 times in metrics.jsonl, not 1",
        "train of step 9 stands 0 times in metrics.jsonl, not 1",
    ]


@pytest.mark.parametrize(("relative", "noticed"), [(1e-9, {True}), (1e-4, {True, False})])
def test_another_loss_is_noticed(finished_run: Path, other_run: Path, relative: float, noticed: set[bool]) -> None:
    """Bit for bit in the same layout, beyond rounding in another."""
    lines = [json.loads(line) for line in (other_run / "metrics.jsonl").read_text().splitlines()]
    changed = next(line for line in lines if line["kind"] == "train" and line["global_step"] == 30)
    changed["loss"] *= 1 + relative
    (other_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for same_layout in (True, False):
        problems, _ = compare(finished_run, other_run, same_layout=same_layout)
        assert bool(problems) == (same_layout in noticed)


def test_other_files_and_weights_are_noticed(finished_run: Path, other_run: Path) -> None:
    (other_run / "search" / "step-000010.safetensors").write_bytes(b"")
    shutil.rmtree(sorted((other_run / "checkpoints").iterdir())[-1])
    problems, _ = compare(finished_run, other_run, same_layout=True)
    assert problems[0] == "search/step-000010.safetensors differs"
    assert any("of the last checkpoint differs" in problem for problem in problems[1:])
    (other_run / "export" / "bert" / "model.safetensors").unlink()
    problems, _ = compare(finished_run, other_run, same_layout=True)
    assert problems == ["export/bert/model.safetensors exists in one of the runs only"]
