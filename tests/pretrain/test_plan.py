"""Stages of a plan and their learning rates, with the numbers of full-size pre-training worked out by hand."""

import dataclasses
import math
import re
from itertools import pairwise
from typing import Any

import pytest

from earlybert.core.errors import UserError
from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.plan.borders.narrow import Narrow
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import Plan, PlannedStage, full_network
from earlybert.pretrain.plan.recipe import ModelConfig, PhaseConfig, Recipe
from earlybert.pretrain.plan.schedule import Form, whole_steps
from earlybert.pretrain.plan.stages import Stage, build_stages
from earlybert.pretrain.plan.text import mask_notes
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.search import DrawConfig, SearchConfig
from earlybert.pretrain.ticket.ticket import full_shape

PHASE1 = PhaseConfig(
    length=128,
    max_predictions=20,
    global_batch=65_536,
    micro_batch=64,
    steps=7_038,
    learning_rate=6e-3,
    warmup=0.2843,
)
PHASE2 = PhaseConfig(
    length=512,
    max_predictions=80,
    global_batch=32_768,
    micro_batch=16,
    steps=1_563,
    learning_rate=4e-3,
    warmup=0.128,
)


def paper(**changes: Any) -> Recipe:
    return Recipe(**({"phase1": PHASE1, "phase2": PHASE2} | changes))


def stages(**changes: Any) -> dict[str, Stage]:
    return {stage.name: stage for stage in build_stages(paper(**changes))}


def planned(**changes: Any) -> list[PlannedStage]:
    recipe = paper(**changes)
    return Plan(recipe, full_network(recipe, 30_522, "nsp")).stages


FORMS: list[Form] = ["poly", "poly_continuous"]
PHASES = {"phase1": PHASE1, "phase2": PHASE2}
DENSE: dict[str, Any] = {"plan": ["phase1", "phase2"]}


def test_stages_of_the_paper() -> None:
    found = stages()
    assert list(found) == ["search", "phase1", "phase2"]
    assert [(p.stage.begin.word, p.narrow, p.stage.searching, p.stage.phase) for p in planned()] == [
        ("initial", False, True, "phase1"),
        ("narrow", True, False, "phase1"),
        ("lengthen", True, False, "phase2"),
    ]
    assert [s.steps for s in found.values()] == [400, 5_630, 1_250]
    assert [s.schedule.total for s in found.values()] == [7_038, 5_630, 1_250]
    assert [(s.length, s.max_predictions) for s in found.values()] == [(128, 20), (128, 20), (512, 80)]
    assert [(s.global_batch, s.micro_batch) for s in found.values()] == [(65_536, 64), (65_536, 64), (32_768, 16)]


def test_dense_plan_runs_all_steps() -> None:
    assert [(p.stage.name, p.stage.begin.word, p.narrow, p.stage.steps) for p in planned(**DENSE)] == [
        ("phase1", "initial", False, 7_038),
        ("phase2", "lengthen", False, 1_563),
    ]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (["search"], [("search", "initial", False)]),
        (["narrow", "phase1", "phase2"], [("phase1", "narrow", True), ("phase2", "lengthen", True)]),
        (["search", "narrow", "phase2"], [("search", "initial", False), ("phase2", "narrow", True)]),
        (["phase2"], [("phase2", "initial", False)]),
    ],
)
def test_how_stages_begin(plan: Any, expected: list[tuple[str, str, bool]]) -> None:
    assert [(p.stage.name, p.stage.begin.word, p.narrow) for p in planned(plan=plan)] == expected


@pytest.mark.parametrize(
    ("steps", "factor", "expected"),
    [(7_038, 0.8, 5_630), (1_563, 0.8, 1_250), (5, 0.5, 3), (7, 0.5, 4), (10, 1.0, 10), (1, 0.1, 1)],
)
def test_budget_rounds_half_up(steps: int, factor: float, expected: int) -> None:
    assert whole_steps(steps, factor) == expected


def test_step_factor_changes_narrow_stages_only() -> None:
    factor = Narrow(step_factor=0.5)
    assert [s.steps for s in stages(narrow=factor).values()] == [400, 3_519, 782]
    assert [s.steps for s in stages(narrow=factor, **DENSE).values()] == [7_038, 1_563]


def test_warmup_rises_in_a_line_and_falls_off_a_step() -> None:
    """Steps count from 0. Of 7,038 steps warm-up takes 0.2843, that is 2,000.9: step 1,999 is its last."""
    stage = stages(**DENSE)["phase1"]
    rates = [stage.schedule.learning_rate_at(step) for step in range(7_038)]
    assert rates[0] == pytest.approx(6e-3 / (7_038 * 0.2843))
    assert rates[999] == pytest.approx(6e-3 * 1_000 / 2_000.9, rel=1e-4)
    assert rates[1_999] == pytest.approx(6e-3 * 2_000 / 2_000.9, rel=1e-4)
    assert rates[2_000] == pytest.approx(6e-3 * math.sqrt(1 - 0.2843), rel=1e-4)
    assert rates[2_000] == pytest.approx(5.08e-3, abs=5e-6)
    assert max(rates) == rates[1_999]
    assert all(later < earlier for earlier, later in pairwise(rates[2_000:]))
    assert rates[5_277] == pytest.approx(6e-3 * math.sqrt(0.25), rel=1e-3)
    assert rates[-2] == pytest.approx(6e-3 * math.sqrt(1 / 7_038))
    assert rates[-1] == 0.0


def test_second_phase_falls_to_its_own_step() -> None:
    stage = stages(**DENSE)["phase2"]
    assert stage.schedule.learning_rate_at(199) == pytest.approx(4e-3 * 200 / (1_563 * 0.128))
    assert stage.schedule.learning_rate_at(200) == pytest.approx(4e-3 * math.sqrt(1 - 0.128), rel=1e-3)


def test_continuous_schedule_has_no_step() -> None:
    stage = stages(**DENSE)["phase1"]
    continuous = stages(**DENSE, schedule="poly_continuous")["phase1"]
    rates = [continuous.schedule.learning_rate_at(step) for step in range(7_038)]
    assert rates[:2_000] == [stage.schedule.learning_rate_at(step) for step in range(2_000)]
    assert rates[2_000] == pytest.approx(6e-3, rel=1e-4)
    # A quarter of the way left of the fall: x = 1 - 0.7157 / 4.
    assert rates[round(7_038 * (1 - 0.7157 / 4)) - 1] == pytest.approx(3e-3, rel=1e-3)
    assert max(abs(a - b) for a, b in pairwise(rates[:6_900])) < 3e-5
    assert rates[-1] == 0.0


def test_no_warmup_starts_below_the_peak_and_never_divides_by_zero() -> None:
    stage = stages(phase1=PhaseConfig(**(vars(PHASE1) | {"warmup": 0.0, "steps": 100})), **DENSE)["phase1"]
    for form in FORMS:
        assert dataclasses.replace(stage.schedule, form=form).learning_rate_at(0) == pytest.approx(
            6e-3 * math.sqrt(0.99)
        )


def test_search_follows_the_full_schedule() -> None:
    search, dense = stages()["search"], stages(**DENSE)["phase1"]
    assert search.schedule.learning_rate_at(399) == pytest.approx(1.2e-3, rel=1e-3)
    assert all(search.schedule.learning_rate_at(s) == dense.schedule.learning_rate_at(s) for s in range(400))
    # The sum bounds how far coefficients can move.
    assert sum(search.schedule.learning_rate_at(s) for s in range(400)) == pytest.approx(0.24, abs=0.005)


def test_narrow_stages_keep_the_warmup_proportion() -> None:
    stage = stages()["phase1"]
    rates = [stage.schedule.learning_rate_at(step) for step in range(5_630)]
    assert rates.index(max(rates)) == math.floor(5_630 * 0.2843) - 1 == 1_599
    assert rates[-1] == 0.0


def test_description_of_the_paper_s_plan() -> None:
    recipe = paper(draw=DrawConfig(width_multiple=1))
    full = full_network(recipe, 30_522, "nsp")
    described = Plan(recipe, full).content()
    assert [stage["tokens"] for stage in described["stages"]] == [
        400 * 65_536 * 128,
        5_630 * 65_536 * 128,
        1_250 * 32_768 * 512,
    ]
    dense = described["dense_parameters"]
    assert dense == count_parameters(full)
    search, phase1, phase2 = (stage["parameters"] for stage in described["stages"])
    # method: 37,008 coefficients; 109,482,240 parameters dense and 83,038,157 narrow.
    assert search == dense + 37_008
    assert phase1 == phase2 == dense - (109_482_240 - 83_038_157)
    assert described["flops"] == pytest.approx(sum(s["flops_per_step"] * s["steps"] for s in described["stages"]))
    # The search costs 4 % of dense training, the narrow network 0.69 of it for 80 % of the steps.
    assert described["flops"] / described["dense_flops"] == pytest.approx(0.039 + 0.8 * 0.69, abs=0.01)


def test_plan_is_known_before_the_ticket_is_drawn() -> None:
    """Layers share the neurons differently in every ticket, but there are as many."""
    recipe = paper(model=ModelConfig(num_layers=3), draw=DrawConfig(width_multiple=64))
    full = full_network(recipe, 30_522, "nsp")
    drawn = random_ticket(full_shape(full), recipe.draw.rule, seed=11)
    plan = Plan(recipe, full)
    assert plan.content() == plan.with_ticket(drawn, "the ticket").content()


def test_dense_plan_describes_itself_as_dense() -> None:
    recipe = paper(**DENSE)
    described = Plan(recipe, full_network(recipe, 30_522, "nsp")).content()
    assert described["flops"] == described["dense_flops"]


def test_networks_of_the_stages() -> None:
    recipe = paper(search=SearchConfig(steps=5))
    full = full_network(recipe, 30_522, "full-sentences")
    ticket = random_ticket(full_shape(full), recipe.draw.rule, seed=1)
    plan = Plan(recipe, full)
    search, phase1, _ = (each.network for each in plan.with_ticket(ticket, "the ticket").stages)
    assert search.searching and search.kept_heads is None and not full.searching
    assert not phase1.searching and phase1.ticket_sha256 == ticket.sha256
    assert phase1.heads == [8] * 12 and phase1.losses == ("masked",)
    assert plan.network(0) == search
    with pytest.raises(ValueError, match="phase1 needs a ticket"):
        plan.network(1)
    with pytest.raises(UserError, match=r"other\.json: is a ticket for a model with num_layers 12; here it must be 3"):
        Plan(recipe, dataclasses.replace(full, num_hidden_layers=3)).with_ticket(ticket, "other.json")


# --- masks ------------------------------------------------------------------------------------------------------------

FALLING = {"from": 0.3, "to": 0.15}


def test_mask_shares_are_a_straight_line_over_the_phases() -> None:
    """101 steps: phase 1 has 80 of them, phase 2 the other 21; the shares fall by 0.0015 a step."""
    small = {name: PhaseConfig(**(vars(PHASE1) | {"steps": steps})) for name, steps in (("phase1", 80), ("phase2", 21))}
    found = stages(mask_probability=FALLING, **small, **DENSE)
    shares = [
        found[name].masks.share_at(step) for name, steps in (("phase1", 80), ("phase2", 21)) for step in range(steps)
    ]
    assert shares == pytest.approx([0.3 - 0.0015 * step for step in range(101)])


def test_mask_shares_of_a_search_are_those_of_the_dense_run() -> None:
    """As are its learning rates; the narrow network then goes through the whole line in its 80 % of the steps."""
    found, dense = stages(mask_probability=FALLING), stages(mask_probability=FALLING, **DENSE)
    last = found["search"].steps - 1
    assert found["search"].masks.share_at(last) == dense["phase1"].masks.share_at(last) < 0.3
    assert found["phase1"].masks.share_at(0) == 0.3
    assert found["phase2"].masks.share_at(found["phase2"].steps - 1) == pytest.approx(0.15)
    assert found["phase2"].masks.share_at(0) < found["phase1"].masks.share_at(found["phase1"].steps - 1)


def test_parts_of_a_phase_share_one_line_of_masks() -> None:
    """Steps are counted from the phase's beginning, as positions in the data are."""
    plan = ["phase1", "stack", "phase1"]
    found = stages(mask_probability=FALLING, plan=plan, stack=Stack(layers=[6], until=[0.5]))
    whole = stages(mask_probability=FALLING, plan=["phase1"])["phase1"]
    assert [stage.masks for stage in found.values()] == [whole.masks, whole.masks]


def test_predictions_follow_the_larger_share_and_cuts_are_said() -> None:
    free = {name: PhaseConfig(**(vars(phase) | {"max_predictions": None})) for name, phase in PHASES.items()}
    rising = planned(mask_probability={"from": 0.15, "to": 0.3}, **free)
    assert [stage.stage.max_predictions for stage in rising] == [38, 38, 154]  # 30 % of 128 and of 512
    assert [stage.stage.max_predictions for stage in planned(**free)] == [19, 19, 77]

    def notes(**changes: Any) -> list[str]:
        recipe = paper(**changes)
        return mask_notes(Plan(recipe, full_network(recipe, 30_522, "nsp")))

    assert notes() == notes(**free) == []
    said = notes(mask_probability=FALLING)
    assert said[0] == "Masked tokens: 30% in the first step, 15% in the last one; validation 15%."
    assert "phase1.max_predictions is 20" in said[1] and "asks for 38" in said[1]
    assert "phase2.max_predictions is 80" in said[2] and "asks for 154" in said[2]
    assert len(notes(mask_probability=FALLING, **free)) == 1 and len(notes(mask_probability=0.3)) == 2


@pytest.mark.parametrize(
    ("share", "named"),
    [
        ({"from": 0.3}, "mask_probability is {'from': 0.3}; it must be one number, or {from: 0.3, to: 0.15}"),
        ({"from": 0.3, "to": 0.0}, "mask_probability is 0.0; it must be between 0 and 1"),
        ({"from": 1.0, "to": 0.1}, "mask_probability is 1.0"),
        ({"start": 0.3, "to": 0.1}, "mask_probability is {'start'"),
        (1.5, "mask_probability is 1.5"),
    ],
)
def test_shares_that_are_none_are_refused(share: Any, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        check_recipe(paper(mask_probability=share))
