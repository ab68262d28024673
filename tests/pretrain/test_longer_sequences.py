"""Phase 2's first step: what its positions that phase 1 had none of begin with.

Shape suffixes: P positions, H hidden size.
"""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import load_recipe
from tests.conftest import small_recipe
from tests.in_process import train_here

SHORT, LONG, TABLE = 32, 48, 64


@pytest.fixture(scope="module")
def recipe(workplace: Path) -> Path:
    """Of two phases; the second has a rate with which nothing moves."""
    content = small_recipe(workplace / "text.txt")
    content |= {"plan": ["phase1", "phase2"], "export": [], "keep_checkpoints": 9}
    content["model"]["max_position_embeddings"] = TABLE
    content["phase1"] |= {"length": SHORT, "steps": 4}
    content["phase2"] |= {"length": LONG, "steps": 2, "learning_rate": 1e-12}
    path = workplace / "longer.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def tables(recipe: Path, name: str, *options: str) -> list[Tensor]:
    """The position table at the end of either phase."""
    run = recipe.parent / name
    status, output = train_here(recipe.parent, "--config", str(recipe), "--run-dir", str(run), *options)
    assert status == 0, output
    checkpoints = map(Checkpoint, list_checkpoints(run / "checkpoints"))
    found = {checkpoint.state.stage: checkpoint for checkpoint in checkpoints}
    return [found[stage].weights["embeddings.position_embeddings.weight"] for stage in ("phase1", "phase2")]


def test_new_positions_are_as_those_that_were_trained(recipe: Path) -> None:
    short_PH, long_PH = tables(recipe, "repeated", "--new_positions", "repeated")
    expected_PH = torch.stack([short_PH[position % SHORT] for position in range(TABLE)])
    torch.testing.assert_close(long_PH, expected_PH, rtol=0, atol=1e-7)
    assert (short_PH[SHORT:] - short_PH[:SHORT]).abs().mean() > 1e-2


def test_without_being_asked_they_keep_their_initial_values(recipe: Path) -> None:
    short_PH, long_PH = tables(recipe, "initial")
    torch.testing.assert_close(long_PH, short_PH, rtol=0, atol=1e-7)


SEARCHED = ["--plan", "[search, narrow, phase2]", "--search.steps", "4", "--narrow.rewind", "searched"]


@pytest.mark.parametrize(
    ("conflict", "said"),
    [
        (["--initial", "some-bert"], "initial is 'some-bert', whose positions are trained"),
        (SEARCHED, "plan is ['search', 'narrow', 'phase2']"),
    ],
)
def test_what_cannot_be_repeated_is_refused(recipe: Path, conflict: list[str], said: str) -> None:
    options = ["--new_positions", "repeated", *conflict]
    with pytest.raises(UserError, match=re.escape(f'new_positions is "repeated", but {said}')) as caught:
        check_recipe(load_recipe(recipe, options))
    _, _, advice = str(caught.value).rpartition("; give ")
    check_recipe(load_recipe(recipe, [*options, *advice.split()]))
