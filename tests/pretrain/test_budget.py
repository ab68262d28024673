"""A budget of hours: what `plan --hours` proposes fits when it is planned again, and follows its rules."""

import dataclasses
import math
import re
from typing import Any

import pytest

from earlybert.core import cli
from earlybert.core.errors import UserError
from earlybert.pretrain.cost.budget import FEWEST_STEPS, SMALLEST_HALVED_BATCH, propose
from earlybert.pretrain.cost.cluster import parse_cluster
from earlybert.pretrain.cost.cluster_plan import on_cluster
from earlybert.pretrain.plan.plan import Plan, full_network
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path
from tests.conftest import ROOT

GIVEN = [
    ("bert_large", "1x8 V100-32GB", 24.0, []),
    ("bert_large", "1x8 V100-32GB", 2.0, []),
    ("bert_base", "16x8 A100-80GB", 0.5, []),
    ("bert_base", "1x8 A100-80GB", 100.0, ["--plan", "[phase1, phase2]"]),
    ("msg_base", "1x8 A100-80GB", 3.0, []),
    ("stacking_base", "1x1 H100-80GB", 5.0, []),
    ("quickstart", "1x1 V100-16GB", 0.01, []),
]


def planned(recipe: Recipe) -> Plan:
    return Plan(recipe, full_network(recipe, recipe.corpus.vocab_size, recipe.corpus.objective))


def hours_of(recipe: Recipe, cluster: str) -> float:
    """By the cost model, as `plan --cluster` says them."""
    stages = planned(recipe).stages
    return sum(each.seconds for each in on_cluster(stages, parse_cluster(cluster, 100), muon=False)) / 3600


def proposed(name: str, cluster: str, hours: float, *options: str) -> tuple[Recipe, Recipe]:
    """The recipe, and what is proposed."""
    recipe = load_recipe(recipe_path(name), list(options))
    return recipe, propose(planned(recipe), parse_cluster(cluster, 100), hours, muon=False).recipe


@pytest.mark.parametrize(("name", "cluster", "hours", "options"), GIVEN)
def test_the_printed_options_fit_into_the_budget(
    name: str, cluster: str, hours: float, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And fill it: what is left would not do for ten more steps."""
    cli.main(["plan", "--config", name, *options, "--cluster", cluster, "--hours", str(hours)])
    printed = re.search(r"^options: (--.*steps.*)$", capsys.readouterr().out, re.MULTILINE)
    assert printed
    again = load_recipe(recipe_path(name), [*options, *printed[1].split()])
    took = hours_of(again, cluster)
    assert took <= hours
    first = again.phase("phase1").steps
    assert hours - took < 10 * hours / first
    cli.main(["plan", "--config", name, *options, *printed[1].split(), "--cluster", cluster])
    assert "this plan:" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "cluster", "hours", "options"), GIVEN)
def test_proportions_are_the_recipes(name: str, cluster: str, hours: float, options: list[str]) -> None:
    recipe, found = proposed(name, cluster, hours, *options)
    share = found.phase("phase1").steps / recipe.phase("phase1").steps
    if recipe.phase2 and "phase2" in recipe.plan:
        assert found.phase("phase2").steps == pytest.approx(share * recipe.phase("phase2").steps, abs=1)
    if "search" in recipe.plan:
        assert found.search.steps == pytest.approx(share * recipe.search.steps, abs=1)
    # Nothing else is touched.
    numbers = ("steps", "global_batch", "learning_rate")
    changed = {key for key, value in found.flat().items() if recipe.flat()[key] != value}
    assert changed <= {f"{phase}.{number}" for phase in ("phase1", "phase2") for number in numbers} | {"search.steps"}


def test_the_batch_is_the_largest_with_which_half_of_the_steps_fit() -> None:
    """By trying all: hours of half of the recipe's steps with every batch."""
    name, cluster = "bert_base", "1x8 A100-80GB"
    recipe = load_recipe(recipe_path(name), [])
    own = {phase: recipe.phase(phase) for phase in ("phase1", "phase2")}

    def with_half(divided: int) -> Recipe:
        smaller: dict[str, Any] = {
            phase: dataclasses.replace(numbers, steps=numbers.steps // 2, global_batch=numbers.global_batch // divided)
            for phase, numbers in own.items()
        }
        return dataclasses.replace(recipe, **smaller, search=dataclasses.replace(recipe.search, steps=200))

    hours = {divided: hours_of(with_half(divided), cluster) for divided in (1, 2, 4, 8, 16)}
    for divided, needed in hours.items():
        # A little more than half of the steps take; a little less.
        for factor, expected in ((1.02, divided), (0.98, min(16, 2 * divided))):
            _, found = proposed(name, cluster, factor * needed)
            for phase, numbers in own.items():
                assert found.phase(phase).global_batch == numbers.global_batch // expected
    assert own["phase1"].global_batch // 16 == SMALLEST_HALVED_BATCH


def test_rates_follow_the_square_root_of_the_batch() -> None:
    """You et al. 2020: a sixteenth of the batch has a fourth of the rate."""
    _, found = proposed("bert_large", "1x8 V100-32GB", 2.0)
    assert (found.phase("phase1").global_batch, found.phase("phase2").global_batch) == (4_096, 2_048)
    assert (found.phase("phase1").learning_rate, found.phase("phase2").learning_rate) == (1.5e-3, 1e-3)
    recipe, found = proposed("bert_large", "1x8 V100-32GB", 24.0)
    for phase in ("phase1", "phase2"):
        ratio = found.phase(phase).global_batch / recipe.phase(phase).global_batch
        rate = recipe.phase(phase).learning_rate * math.sqrt(ratio)
        assert ratio < 1 and found.phase(phase).learning_rate == pytest.approx(rate, rel=2e-3)


def test_muons_rate_keeps_its_proportion(capsys: pytest.CaptureFixture[str]) -> None:
    """By the options that are printed, which LAMB alone has without Muon's."""
    muon = ["--deepspeed", str(ROOT / "ds_configs" / "muon.json"), "--optimizer.muon_learning_rate", "8e-3"]
    recipe, found = load_recipe(recipe_path("bert_large"), []), {}
    for name, options in (("Muon", muon), ("Lamb", [])):
        cli.main(["plan", "--config", "bert_large", *options, "--cluster", "1x8 V100-32GB", "--hours", "2"])
        printed = re.search(r"^options: (--.*steps.*)$", capsys.readouterr().out, re.MULTILINE)
        assert printed
        found[name] = load_recipe(recipe_path("bert_large"), [*options, *printed[1].split()])
        assert ("--optimizer.muon_learning_rate" in printed[1]) == (name == "Muon")
    share = found["Muon"].phase("phase1").learning_rate / recipe.phase("phase1").learning_rate
    assert share < 1 and found["Muon"].optimizer.muon_learning_rate == pytest.approx(8e-3 * share)


def test_muons_rate_stays_where_the_phase_that_it_belongs_to_is_not_halved() -> None:
    """In phase 2 it has phase 2's share of phase 1's rate, which falls with phase 2's."""
    recipe = load_recipe(recipe_path("bert_large"), ["--plan", "[phase2]"])
    found = propose(planned(recipe), parse_cluster("1x8 V100-32GB", 100), 2.0, muon=True).recipe
    assert found.phase("phase2").learning_rate < recipe.phase("phase2").learning_rate
    assert found.optimizer == recipe.optimizer


def test_batches_stay_where_they_cannot_be_smaller() -> None:
    """A GPU needs a sequence, and rates at stacks stand for one batch."""
    _, found = proposed("bert_large", "3000x8 H200-141GB", 0.02)
    assert found.phase("phase2").global_batch == 32_768
    rates = "[{until: 0.5, layers: 12, learning_rate: 1e-3}, {layers: 24, learning_rate: 1e-4}]"
    grown = ["--plan", "[phase1]", "--grow", rates, "--phase1.warmup", "0.1"]
    _, found = proposed("bert_large", "1x8 V100-32GB", 10.0, *grown)
    assert found.phase("phase1").global_batch == 65_536


def test_budgets_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--hours is 0.02, which is 40 steps of phase1 on this cluster; .* for 100"):
        proposed("bert_large", "1x8 V100-32GB", 0.02)
    for hours in (0.0, -1.0, math.nan, math.inf, 1e300):
        with pytest.raises(UserError, match=r"--hours is .*; it must be a number above 0, at most 1,000,000"):
            proposed("bert_large", "1x8 V100-32GB", hours)
    # What the refusal asks for is enough, and has so many steps.
    _, found = proposed("bert_large", "1x8 V100-32GB", 0.06)
    assert found.phase("phase1").steps >= FEWEST_STEPS


def test_hours_need_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--config", "bert_base", "--hours", "3"])
    assert ended.value.code == 2 and "--hours needs --cluster" in capsys.readouterr().err
