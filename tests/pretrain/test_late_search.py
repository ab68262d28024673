"""A search in the middle of phase 1: dense training until it begins, and coefficients that change nothing at first."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from earlybert.core.errors import UserError
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import load_recipe
from earlybert.pretrain.ticket.search import load_snapshot, snapshot_path
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import BIN, ROOT, free_port, run_training, small_recipe
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import losses, metrics, require_close, require_same

LATE = ("--plan", "[phase1, coefficients, search, narrow, phase1]", "--narrow.rewind", "searched")
SETTINGS = ("--coefficients.until", "[0.5]", "--search.steps", "4", "--search.snapshot_every", "2")


def trained(workplace: Path, name: str, *arguments: str, launcher: tuple[str, ...] | None = None) -> Path:
    arguments = ("--config", "late.yaml", "--run-dir", name, *arguments)
    status, output = run_training(workplace, *arguments, launcher=launcher)
    assert status == 0, output
    return workplace / name


@pytest.fixture(scope="module")
def late_run(workplace: Path) -> Path:
    recipe = small_recipe(workplace / "text.txt")
    recipe["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (workplace / "late.yaml").write_text(yaml.safe_dump(recipe | {"export": []}))
    return trained(workplace, "late", *LATE, *SETTINGS)


def test_it_is_dense_training_until_the_search_moves_the_coefficients(workplace: Path, late_run: Path) -> None:
    stages = {line["stage"]: line["step"] for line in metrics(late_run)}
    assert stages == {"phase1-before-search": 10, "search": 4, "phase1": 6}
    dense, late = losses(trained(workplace, "undisturbed", "--plan", "[phase1]")), losses(late_run)
    assert late[:10] == dense[:10]
    # The same weights, the same samples; the folded coefficients are 1.
    assert late[10] == pytest.approx(dense[10], rel=1e-6)
    assert late[11] != pytest.approx(dense[11], rel=1e-6)
    ticket = Ticket.load(late_run / "ticket.json")
    assert [len(heads) for heads in ticket.heads] == [3, 3]


def test_stopped_and_resumed_it_is_the_same(workplace: Path, late_run: Path) -> None:
    """Before the border, at it, and in the middle of the search."""
    arguments = ("--config", "late.yaml", "--run-dir", "stopped", *LATE, *SETTINGS)
    for stage, step in (("phase1-before-search", 5), ("search", 0), ("search", 2)):
        status, output = train_here(workplace, *arguments, prepare=partial(patched_run.stop_once, stage, step))
        assert status == 0 and f"stopped as asked at step {step} of {stage};" in output, output
    require_same(trained(workplace, "stopped", *LATE, *SETTINGS), late_run)


@pytest.mark.slow
def test_two_ranks_search_and_train_what_one_does(workplace: Path, late_run: Path) -> None:
    """With Muon, whose moments are not those of the coefficients, under ZeRO-3."""
    muon = ROOT / "ds_configs" / "muon.json"
    content = json.loads(muon.read_text()) | {"zero_optimization": {"stage": 3}}
    (workplace / "muon3.json").write_text(json.dumps(content))
    alone = trained(workplace, "alone", *LATE, *SETTINGS, "--deepspeed", str(muon))
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    layout = ("--deepspeed", "muon3.json", "--phase1.micro_batch", "7")
    two = trained(workplace, "two", *LATE, *SETTINGS, *layout, launcher=launcher)
    found, expected = (load_snapshot(snapshot_path(run / "search", 4)) for run in (two, alone))
    np.testing.assert_allclose(found.heads_LU, expected.heads_LU, rtol=1e-5)
    np.testing.assert_allclose(found.neurons_LU, expected.neurons_LU, rtol=1e-5)
    require_close(two, alone)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*LATE[:2], *SETTINGS), 'it must be "searched"'),
        ((*LATE, "--coefficients.until", "[]"), "coefficients.until is []"),
        ((*LATE, "--coefficients.until", "[0.9]", "--search.steps", "4"), "coefficients.until is [0.9]"),
        (("--plan", "[search, narrow, phase1, coefficients, search]"), "search appears twice"),
        (("--plan", "[phase1, search, narrow, phase1]"), "after phase1 must come stack or widen or coefficients"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], expected: str, workplace: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(workplace / "text.txt")))
    with pytest.raises(UserError) as refused:
        check_recipe(load_recipe(path, list(arguments)))
    assert expected in str(refused.value)
