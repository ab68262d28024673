"""Today's losses against stored ones, step by step: what changes the numbers must be meant to."""

import copy
from pathlib import Path

import pytest

from earlybert.core.files import read_json
from tests.conftest import BIN, free_port
from tests.golden.curves import MEASURED, NAMES, STEPS, dropout_masks, first_difference, stored_path, train_curve

WITHOUT_DROPOUT = ("narrow", "dense")
# Processes that prepare micro-batches; they do not show in a curve.
LOADER_WORKERS = {"search": "0", "narrow": "0", "dense": "2"}


@pytest.mark.parametrize("name", NAMES)
def test_curve_is_the_stored_one(name: str, tmp_path: Path) -> None:
    stored = read_json(stored_path(name))
    if name not in WITHOUT_DROPOUT and stored["dropout_masks"] != dropout_masks():
        pytest.skip("this build of PyTorch on this CPU draws other dropout masks than the stored curve had")
    curve = train_curve(name, tmp_path, "--loader_workers", LOADER_WORKERS[name])
    difference = first_difference(name, stored, curve)
    assert difference is None, difference


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_curve_on_two_ranks_is_the_stored_one(name: str, tmp_path: Path) -> None:
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    difference = first_difference(name, read_json(stored_path(name)), train_curve(name, tmp_path, launcher=launcher))
    assert difference is None, difference


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_that_is_off_is_named(name: str) -> None:
    stored = read_json(stored_path(name))
    assert all(len(stored[measured]) == STEPS for measured in MEASURED)
    changed = copy.deepcopy(stored)
    for step in (11, 20):
        changed["loss"][step] *= 1.0002
    difference = first_difference(name, stored, changed)
    assert difference is not None
    for part in (name, "loss of step 12", f"{stored['loss'][11]:.7g}", f"{changed['loss'][11]:.7g}", "make golden"):
        assert part in difference
    changed["loss"] = [float("nan")] * STEPS
    assert "step 1 is nan" in str(first_difference(name, stored, changed))
    assert first_difference(name, stored, stored) is None
