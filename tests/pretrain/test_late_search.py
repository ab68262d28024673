"""A search in the middle of phase 1: dense training until it begins, and coefficients that change nothing at first."""

from pathlib import Path

import pytest
import yaml

from earlybert.core.errors import UserError
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import load_recipe
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import run_training, small_recipe
from tests.pretrain.run_files import losses, metrics

LATE = ("--plan", "[phase1, coefficients, search, narrow, phase1]", "--narrow.rewind", "searched")
SETTINGS = ("--coefficients.until", "[0.5]", "--search.steps", "4", "--search.snapshot_every", "2")


def test_it_is_dense_training_until_the_search_moves_the_coefficients(workplace: Path) -> None:
    recipe = small_recipe(workplace / "text.txt")
    recipe["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (workplace / "late.yaml").write_text(yaml.safe_dump(recipe | {"export": []}))
    for name, words in (("undisturbed", ("--plan", "[phase1]")), ("late", LATE + SETTINGS)):
        status, output = run_training(workplace, "--config", "late.yaml", "--run-dir", name, *words)
        assert status == 0, output
    stages = {line["stage"]: line["step"] for line in metrics(workplace / "late")}
    assert stages == {"phase1-before-search": 10, "search": 4, "phase1": 6}
    dense, late = losses(workplace / "undisturbed"), losses(workplace / "late")
    assert late[:10] == dense[:10]
    # The same weights, the same samples; the folded coefficients are 1.
    assert late[10] == pytest.approx(dense[10], rel=1e-6)
    assert late[11] != pytest.approx(dense[11], rel=1e-6)
    ticket = Ticket.load(workplace / "late" / "ticket.json")
    assert [len(heads) for heads in ticket.heads] == [3, 3]


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
