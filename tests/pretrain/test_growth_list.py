"""Growth as one list: the plan and the numbers that it becomes, by hand, and lists without sense."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from earlybert.core.errors import UserError
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import Plan, full_network
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path
from earlybert.pretrain.plan.same_run import require_same_run
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.ticket.drawing import all_ticket

DENSE, EARLYBERT = ["phase1", "phase2"], ["search", "narrow", "phase1", "phase2"]


def grown(plan: list[str], grow: list[Any], *more: str) -> Recipe:
    """BERT-Base's recipe with this plan and list."""
    flags = ["--plan", yaml.safe_dump(plan, default_flow_style=True).strip()]
    flags += ["--grow", yaml.safe_dump(grow, default_flow_style=True, width=9999).strip()]
    return load_recipe(recipe_path("bert_base"), [*flags, *more])


def facts(recipe: Recipe) -> list[tuple[str, int, int, int, int]]:
    """Of every part of phase 1: what it begins with, its depth, heads and neurons of its first layer, its steps."""
    planned = Plan(recipe, full_network(recipe, 30_522, "nsp")).stages
    return [
        (each.stage.begin.word, each.network.num_hidden_layers, each.network.heads[0], each.network.neurons[0], steps)
        for each in planned
        for steps in [each.stage.steps]
        if each.stage.phase == "phase1"
    ]


def test_a_ticket_first_then_deeper_then_wide() -> None:
    """80 % of 7,038 steps are 5,630; neurons of the first layer are cut by chance before the ticket is drawn."""
    grow = [{"until": 0.1, "layers": 3, "width": "ticket"}, {"until": 0.3, "layers": 6}]
    grow += [{"until": 0.5, "layers": 12}, {"width": "full"}]
    recipe = grown(EARLYBERT, grow)
    check_recipe(recipe)
    words = ["search", "narrow", "phase1", "stack", "phase1", "stack", "phase1", "widen", "phase1", "phase2"]
    assert recipe.plan == words
    found = facts(recipe)
    assert [(word, layers, heads, steps) for word, layers, heads, _, steps in found] == [
        ("initial", 3, 12, 400),
        ("narrow", 3, 8, 563),
        ("stack", 6, 8, 1_126),
        ("stack", 12, 8, 1_126),
        ("widen", 12, 12, 2_815),
    ]
    assert found[1][3] < 3072 and found[4][3] == 3072


def test_grown_then_a_ticket() -> None:
    grow = [{"until": 0.25, "layers": 6, "width": "full"}, {"until": 0.75, "layers": 12, "width": "ticket"}]
    recipe = grown(EARLYBERT, [*grow, {"width": "full"}], "--narrow.rewind", "searched")
    check_recipe(recipe)
    assert " ".join(recipe.plan) == "phase1 stack search narrow phase1 widen phase1 phase2"
    assert [(word, layers, heads) for word, layers, heads, *_ in facts(recipe)] == [
        ("initial", 6, 12),
        ("stack", 12, 12),
        ("narrow", 12, 8),
        ("widen", 12, 12),
    ]


def test_a_full_network_is_cut_at_the_same_depth(tmp_path: Path) -> None:
    """As the plan by hand says it. 80 % of 7,038 steps are 5,630, of which the search takes 400."""
    grow = [{"until": 0.3, "width": "full"}, {"until": 0.5, "width": "ticket"}, {"width": "full"}]
    recipe = grown(EARLYBERT, grow, "--narrow.rewind", "searched")
    check_recipe(recipe)
    assert " ".join(recipe.plan) == "phase1 coefficients search narrow phase1 widen phase1 phase2"
    numbers = ["--coefficients.until", "[0.3]", "--widen.until", "[0.5]", "--widen.to", "[full]"]
    plan = f"[{', '.join(recipe.plan)}]"
    by_hand = load_recipe(recipe_path("bert_base"), ["--plan", plan, *numbers, "--narrow.rewind", "searched"])
    assert dataclasses.replace(recipe, grow=[]) == by_hand
    recipe.save(tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml", []) == recipe
    assert [(word, layers, heads, steps) for word, layers, heads, _, steps in facts(recipe)] == [
        ("initial", 12, 12, 1_689),
        ("coefficients", 12, 12, 400),
        ("narrow", 12, 8, 726),
        ("widen", 12, 12, 2_815),
    ]


def test_a_grown_network_is_cut_later_than_it_grows() -> None:
    grow = [{"until": 0.2, "layers": 6, "width": "full"}, {"until": 0.4, "layers": 12}, {"width": "ticket"}]
    recipe = grown(EARLYBERT, grow, "--narrow.rewind", "searched")
    check_recipe(recipe)
    assert " ".join(recipe.plan) == "phase1 stack phase1 coefficients search narrow phase1 phase2"
    assert (recipe.stack.until, recipe.coefficients.until) == ([0.2], [0.4])


def test_what_is_left_out_stays() -> None:
    """The first part has the width that the plan says, and all layers."""
    depths = [{"until": 0.5, "layers": 6}, {"layers": 12}]
    assert grown(DENSE, depths).plan == ["phase1", "stack", "phase1", "phase2"]
    assert grown(EARLYBERT, depths).plan == ["search", "narrow", "phase1", "stack", "phase1", "phase2"]
    assert grown(EARLYBERT[:3], [{"until": 0.5}, {"width": "full"}]).plan == [*EARLYBERT[:3], "widen", "phase1"]
    assert grown(DENSE, [{}]).plan == DENSE


def test_with_a_ticket_file_nothing_is_searched(tmp_path: Path) -> None:
    base = load_recipe(recipe_path("bert_base"), [])
    ticket = all_ticket(Plan(base, full_network(base, 30_522, "nsp")).ticket_shape)
    ticket.save(tmp_path / "ticket.json")
    given = ("--ticket", str(tmp_path / "ticket.json"))
    recipe = grown(EARLYBERT, [{"until": 0.5, "width": "ticket"}, {"width": "full"}], *given)
    check_recipe(recipe)
    assert recipe.plan == ["narrow", "phase1", "widen", "phase1", "phase2"]
    with pytest.raises(
        UserError, match=r"grow\[1\]\.width is ticket after full, but ticket is '.*ticket.json'; a given"
    ):
        grown(EARLYBERT, [{"until": 0.5, "width": "full"}, {"width": "ticket"}], *given)


def test_stackingbert_is_the_list_that_its_numbers_say() -> None:
    """As they stood in the recipe before it had a list; test_stacking.py has the stages."""
    recipe = load_recipe(recipe_path("stacking_base"), [])
    assert recipe.plan == ["phase1", "stack", "phase1", "stack", "phase1"]
    by_hand = Stack(layers=[3, 6], until=[0.125, 0.3], learning_rates=[5.5e-4, 3.0e-4, 1.95e-4])
    assert recipe.stack == dataclasses.replace(by_hand, learning_rates=[])
    stages, wanted = (build_stages(each) for each in (recipe, dataclasses.replace(recipe, grow=[], stack=by_hand)))
    assert stages[0].schedule.knots
    assert [(each.steps, each.schedule) for each in stages] == [(each.steps, each.schedule) for each in wanted]


def on_straight_lines(points: Sequence[tuple[float, float]], step: int) -> float:
    """By the two points on both sides of it."""
    (before, low), (after, high) = next(pair for pair in pairwise(points) if pair[0][0] <= step <= pair[1][0])
    return low + (high - low) * (step - before) / (after - before)


def test_learning_rates_of_a_list_that_changes_depth_and_width() -> None:
    """At the ends of the parts, straight lines between; 10, 30 and 60 % of 80 % of 1,000 steps."""
    grow = [{"until": 0.1, "layers": 6, "width": "ticket", "learning_rate": 4e-3}]
    grow += [{"until": 0.3, "layers": 12, "learning_rate": 5e-3}]
    grow += [{"until": 0.6, "width": "all_heads", "learning_rate": 1e-3}, {"width": "full", "learning_rate": 1e-4}]
    few = ["--phase1.steps", "1000", "--phase1.warmup", "0.05", "--phase1.learning_rate", "8e-3"]
    recipe = grown(EARLYBERT, grow, *few, "--search.steps", "150")
    check_recipe(recipe)
    search, *parts, _ = build_stages(recipe)
    assert [(each.begin.word, each.steps) for each in parts] == [
        ("narrow", 80),
        ("stack", 160),
        ("widen", 240),
        ("widen", 320),
    ]
    points = [(0, 0.0), (40, 8e-3), (80, 4e-3), (240, 5e-3), (480, 1e-3), (800, 1e-4)]
    found = [each.schedule.learning_rate_at(step) for each in parts for step in range(each.steps)]
    assert found == pytest.approx([on_straight_lines(points, step) for step in range(1, 801)])
    # The search has the full network's time.
    points = [(0, 0.0), (50, 8e-3), (100, 4e-3), (300, 5e-3)]
    found = [search.schedule.learning_rate_at(step) for step in range(150)]
    assert found == pytest.approx([on_straight_lines(points, step) for step in range(1, 151)])
    # Dense training, which the plan is compared with, has no list.
    assert not Plan(recipe, full_network(recipe, 30_522, "nsp")).dense[0].stage.schedule.knots


def test_learning_rates_of_a_list_that_cuts_late() -> None:
    grow = [{"until": 0.5, "width": "full", "learning_rate": 2e-3}, {"width": "ticket", "learning_rate": 1e-3}]
    few = ["--phase1.steps", "1000", "--phase1.warmup", "0.1", "--phase1.learning_rate", "4e-3"]
    recipe = grown(EARLYBERT[:3], grow, *few, "--search.steps", "150", "--narrow.rewind", "searched")
    check_recipe(recipe)
    stages = build_stages(recipe)
    assert [each.steps for each in stages] == [400, 150, 250]
    found = [each.schedule.learning_rate_at(step) for each in stages for step in range(each.steps)]
    points = [(0, 0.0), (80, 4e-3), (400, 2e-3), (800, 1e-3)]
    assert found == pytest.approx([on_straight_lines(points, step) for step in range(1, 801)])


def test_learning_rates_that_the_warm_up_does_not_let_be_are_refused() -> None:
    """BERT-Base's warm-up takes 28 % of the steps."""
    grow = [{"until": 0.1, "width": "ticket", "learning_rate": 4e-3}, {"width": "full", "learning_rate": 1e-4}]
    with pytest.raises(UserError, match=r"phase1\.warmup is 0\.2843, .* steps; with learning_rate in grow .* step 704"):
        check_recipe(grown(EARLYBERT, grow))


def test_masked_structural_growth_in_its_order() -> None:
    """Depth, heads and neurons at 10, 20, 40 and 50 % of 7,038 steps, from 3 layers of 8 heads and a quarter."""
    recipe = load_recipe(recipe_path("msg_base"), [])
    check_recipe(recipe)
    _, *found = facts(recipe)
    assert [(layers, heads, steps) for _, layers, heads, _, steps in found] == [
        (3, 8, 704),
        (3, 8, 704),
        (6, 8, 1_407),
        (6, 12, 704),
        (12, 12, 3_519),
    ]
    assert [neurons for *_, neurons, _ in found[1:]] == [3072] * 4
    plan = Plan(recipe, full_network(recipe, 30_522, "nsp"))
    assert sum(plan.stages[1].network.neurons) == 3 * 768


@pytest.mark.parametrize("name", ["stacking_base", "quickstart_stacking", "msg_base"])
def test_a_run_reads_its_own_configuration_again(name: str, tmp_path: Path) -> None:
    """config.yaml holds the list and what it became."""
    recipe = load_recipe(recipe_path(name), [])
    recipe.save(tmp_path / "config.yaml")
    again = load_recipe(tmp_path / "config.yaml", [])
    assert again == recipe
    require_same_run(again, recipe, tmp_path / "config.yaml")


def test_a_configuration_from_before_the_list_is_read(tmp_path: Path) -> None:
    """A run that began with stack.layers and stack.until has no list, and no section widen."""
    recipe = load_recipe(recipe_path("quickstart_stacking"), [])
    recipe.save(tmp_path / "config.yaml")
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del content["grow"], content["widen"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    old = load_recipe(tmp_path / "config.yaml", [])
    assert old.grow == [] and (old.plan, old.stack, old.widen) == (recipe.plan, recipe.stack, recipe.widen)


TICKET, FULL, HEADS = {"width": "ticket"}, {"width": "full"}, {"width": "all_heads"}
HALF, END = {"until": 0.5}, {"until": 1.0}
NONSENSE: list[tuple[list[str], list[Any], str]] = [
    (DENSE, [3], "grow is 3; it must be a mapping"),
    (DENSE, [HALF | {"layer": 6}, {}], "grow[0].layer is no field of a part; did you mean layers?"),
    (DENSE, [HALF | {"layers": "six"}, {}], "grow[0].layers is six; it must be a whole number, at least 1"),
    (DENSE, [HALF | {"layers": True}, {}], "grow[0].layers is True; it must be a whole number"),
    (DENSE, [HALF | {"layers": 0}, {}], "grow[0].layers is 0; it must be a whole number, at least 1"),
    (DENSE, [{"until": "half"}], "grow[0].until is half; it must be a finite number above 0"),
    (DENSE, [{"learning_rate": float("inf")}], "grow[0].learning_rate is inf; it must be a finite number above 0"),
    (
        DENSE,
        [HALF | {"width": "wide"}],
        "grow[0].width is wide; it must be one of ticket, all_heads, all_neurons, full",
    ),
    (EARLYBERT, [HALF | TICKET, {"width": {"neuron_ratio": "few"}}], "grow[1].width is {'neuron_ratio': 'few'}; it"),
    (EARLYBERT, [HALF | TICKET, {"width": {}}], "grow[1].width is {}; it must be one of ticket"),
    (DENSE, [{"layers": 6}, {"layers": 12}], "grow[0].until is 1 or missing; of all parts only the last one ends at 1"),
    (DENSE, [HALF | {"layers": 6}, {"until": 0.3, "layers": 12}], "grow[1].until is 0.3; it must be above 0.5"),
    (DENSE, [HALF | {"layers": 6}, {"until": 1.5, "layers": 12}], "grow[1].until is 1.5; it must be above 0.5 and at"),
    (DENSE, [HALF | {"layers": 6}], "grow[0] ends at 0.5 with 6 layers; the last part must end at 1 with"),
    (DENSE, [HALF | {"layers": 3}, {"layers": 6}], "grow[1] ends at 1 with 6 layers"),
    (
        DENSE,
        [HALF | {"layers": 8}, {"layers": 12}],
        "grow[1].layers is 12; stacking makes multiples of the 8 before it",
    ),
    (DENSE, [HALF | {"layers": 12}, {"layers": 6}], "grow[1].layers is 6; stacking makes multiples of the 12"),
    (DENSE, [HALF, END], "grow[1] changes neither layers nor width; leave it out"),
    (DENSE, [HALF | TICKET, FULL], "grow[0].width is ticket, but plan is ['phase1', 'phase2']; it needs search in it"),
    (EARLYBERT, [HALF | FULL | {"layers": 6}, {"layers": 12}], "no entry of grow has the width ticket; leave search"),
    (EARLYBERT, [HALF | HEADS, FULL], "grow[0].width is all_heads; phase 1 must begin with ticket or full"),
    (
        EARLYBERT,
        [{"until": 0.2} | TICKET, HALF | HEADS, TICKET],
        "grow[2].width is ticket after all_heads; only a full",
    ),
    (EARLYBERT, [{"until": 0.2} | TICKET, HALF | FULL, HEADS], "grow[2].width is all_heads after full; widening only"),
    (
        EARLYBERT,
        [{"until": 0.2} | TICKET, HALF | HEADS, {"width": "all_neurons"}],
        "grow[2].width is all_neurons after all_heads; widening only gives units back",
    ),
    (EARLYBERT, [HALF | TICKET | {"layers": 6}, FULL | {"layers": 12}], "grow[1] changes layers and width at once"),
    (["phase2"], [HALF | {"layers": 6}, {"layers": 12}], "plan is ['phase2'], but grow makes it"),
    (["phase1", "stack", "phase1"], [{}], "but grow makes it ['phase1']; give grow a plan of the words search, narrow"),
    (
        DENSE,
        [HALF | {"layers": 6, "learning_rate": 1e-3}, {"layers": 12}],
        "grow[1].learning_rate is missing; all entries must have one, or none",
    ),
    (EARLYBERT, [HALF | TICKET, FULL | {"learning_rate": 1e-4}], "grow[0].learning_rate is missing; all entries must"),
]


@pytest.mark.parametrize(("plan", "grow", "message"), NONSENSE)
def test_a_list_without_sense_is_refused_in_one_sentence(plan: list[str], grow: list[Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        grown(plan, grow)
    assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_numbers_beside_the_list_must_be_its_own() -> None:
    grow: list[dict[str, Any]] = [HALF | {"layers": 6}, {"layers": 12}]
    assert grown(DENSE, grow, "--stack.until", "[0.5]").stack.until == [0.5]
    assert grown(DENSE, grow, "--stack.moments", "copied").stack.moments == "copied"
    with pytest.raises(UserError, match=r"stack\.layers is \[4\], but grow says \[6\]; leave stack\.layers out"):
        grown(DENSE, grow, "--stack.layers", "[4]")
    rates = [entry | {"learning_rate": 1e-4} for entry in grow]
    assert grown(DENSE, rates, "--stack.learning_rates", "[1e-4, 1e-4]") == grown(DENSE, rates)
    with pytest.raises(UserError, match=r"stack\.learning_rates is \[0\.1, 0\.1\], but grow says \[0\.0001, 0\.0001\]"):
        grown(DENSE, rates, "--stack.learning_rates", "[0.1, 0.1]")
    with pytest.raises(UserError, match=r"coefficients\.until is \[0\.3\], but grow says \[0\.5\]"):
        grown(EARLYBERT, [HALF | FULL, TICKET], "--coefficients.until", "[0.3]")
