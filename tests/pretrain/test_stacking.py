"""Growing in depth: the surgery against Hugging Face's BERT, the stages of a growing plan, and plans without sense.

The recipe's numbers are StackingBERT's: 3, 6 and 12 layers for 50,000, 70,000 and 280,000 steps.
"""

import copy
import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from earlybert.core.errors import UserError
from earlybert.pretrain.network.bert_format import from_bert, to_bert
from earlybert.pretrain.network.depth import Copy, at_depth
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.network.surgery import identity_layers, narrow_weights, stack_weights
from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.plan.borders.narrow import Narrow
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import Plan, PlannedStage, full_network
from earlybert.pretrain.plan.recipe import PhaseConfig, Recipe, load_recipe, recipe_path
from earlybert.pretrain.plan.schedule import Form
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.ticket.search import SearchConfig
from earlybert.pretrain.ticket.ticket import full_shape, narrow_config
from tests.pretrain.small_models import (
    VOCABULARY,
    build,
    make_ticket,
    padded_logits,
    random_bert,
    random_inputs,
    random_weights,
    small_config,
    unequal_ticket,
)

ORDERS: dict[Copy, list[int]] = {"stacked": [0, 1, 2, 0, 1, 2], "interleaved": [0, 0, 1, 1, 2, 2]}


def stacked(weights: dict[str, Tensor], layers: int, order: Copy) -> dict[str, Tensor]:
    return stack_weights(weights, random_weights(small_config(num_hidden_layers=layers), seed=5), order)


@pytest.mark.parametrize("order", ORDERS)
def test_function_is_that_of_a_hand_built_deeper_bert(order: Copy) -> None:
    """Hugging Face's model with its own layer modules put in twice; exported again, its tie is kept."""
    bert = random_bert().double()
    config, weights = from_bert(bert.config, bert.state_dict())
    layers: Any = bert.bert.encoder.layer
    bert.bert.encoder.layer = nn.ModuleList(copy.deepcopy(layers[source]) for source in ORDERS[order])
    deep = at_depth(config, 6)
    grown = stacked(weights, 6, order)
    inputs = random_inputs()
    with torch.no_grad():
        expected = bert(**inputs)
        found = padded_logits(build(deep, grown, torch.float64), **inputs)
        exported = to_bert(deep, grown).double().eval()(**inputs)
    for output in (found, exported):
        logits = output.prediction_logits[..., :VOCABULARY]
        torch.testing.assert_close(logits, expected.prediction_logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(output.seq_relationship_logits, expected.seq_relationship_logits, rtol=0, atol=1e-6)
    again: Any = to_bert(deep, grown)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 6), (3, 12), (2, 10)])
def test_layers_are_copies_and_all_else_stays(before: int, after: int) -> None:
    shallow = small_config(num_hidden_layers=before)
    weights = random_weights(shallow)
    grown = stacked(weights, after, "stacked")
    deep = at_depth(shallow, after)
    assert {name: tensor.shape for name, tensor in grown.items()} == parameter_shapes(deep)
    for name, tensor in weights.items():
        if not name.startswith("layers."):
            assert torch.equal(grown[name], tensor), name
            continue
        _, layer, part = name.split(".", 2)
        for copied in range(int(layer), after, before):
            assert torch.equal(grown[f"layers.{copied}.{part}"], tensor), name
    a_layer = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("layers.0."))
    assert count_parameters(deep) == count_parameters(shallow) + (after - before) * a_layer


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(("before", "depths"), [(3, [6]), (1, [4]), (1, [2, 6])])
def test_identity_layers_change_nothing(before: int, depths: list[int], published: bool) -> None:
    """Whatever the shallow network's LayerNorms have become, and those of a published network that goes on."""
    shallow = small_config(num_hidden_layers=before)
    grown = random_weights(shallow)
    expected = padded_logits(build(shallow, grown, torch.float64), **random_inputs())
    for below, layers in pairwise([before, *depths]):
        deep = at_depth(shallow, layers)
        fresh = random_weights(deep, seed=2) if published else initial_weights(deep, seed=1)
        grown = stack_weights(grown, identity_layers(fresh, below), "identity")
    found = padded_logits(build(deep, grown, torch.float64), **random_inputs())
    torch.testing.assert_close(found.prediction_logits, expected.prediction_logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.seq_relationship_logits, expected.seq_relationship_logits, rtol=0, atol=1e-6)
    assert torch.count_nonzero(grown[f"layers.{layers - 1}.attention.qkv.weight"])


def test_a_search_over_identity_layers_begins_with_coefficients_of_one() -> None:
    """Of 0, the new layers' weights and coefficients would hold each other at zero: neither had a gradient."""
    deep = small_config(num_hidden_layers=6, searching=True)
    fresh = identity_layers(initial_weights(deep, seed=1), 3)
    grown = stack_weights(random_weights(small_config()), fresh, "identity")
    assert grown.keys() == parameter_shapes(deep).keys()
    coefficients = [tensor for name, tensor in grown.items() if name.endswith("coefficients")]
    assert len(coefficients) == 12 and all((tensor == 1).all() for tensor in coefficients)


@pytest.mark.parametrize("order", ORDERS)
def test_cutting_then_stacking_is_stacking_then_cutting(order: Copy) -> None:
    shallow, deep = small_config(), small_config(num_hidden_layers=6)
    weights, ticket = random_weights(shallow), unequal_ticket(shallow)
    narrow = narrow_config(shallow, ticket)
    deep_narrow = Stack(layers=[3], copy=order).network(narrow, deep, None, 0)
    kept = deep_narrow.kept_units
    assert kept is not None and deep_narrow.heads == [[3, 1, 4][source] for source in ORDERS[order]]
    one = narrow_weights(deep, stacked(weights, 6, order), kept)
    fresh = narrow_weights(deep, random_weights(deep, seed=6), kept)
    other = stack_weights(narrow_weights(shallow, weights, ticket), fresh, order)
    assert one.keys() == other.keys() == parameter_shapes(deep_narrow).keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# The recipe has none.
SECOND = PhaseConfig(
    length=512, max_predictions=80, global_batch=240, micro_batch="auto", steps=40_000, learning_rate=1e-4, warmup=0.1
)


def paper(**changes: Any) -> Recipe:
    """The recipe with its plan and its numbers by hand, in place of the list."""
    by_hand = Stack(layers=[3, 6], until=[0.125, 0.3], learning_rates=[5.5e-4, 3.0e-4, 1.95e-4])
    sections: dict[str, Any] = {"phase2": SECOND, "grow": [], "stack": by_hand}
    return dataclasses.replace(load_recipe(recipe_path("stacking_base"), []), **sections | changes)


def planned(recipe: Recipe) -> Plan:
    return Plan(recipe, full_network(recipe, 30_522, "nsp"))


def test_stages_of_stackingbert() -> None:
    recipe = paper()
    check_recipe(recipe)
    found = build_stages(recipe)
    networks = [each.network for each in planned(recipe).stages]
    assert [(s.name, s.begin.word, n.num_hidden_layers, s.steps) for s, n in zip(found, networks, strict=True)] == [
        ("phase1-3-layers", "initial", 3, 50_000),
        ("phase1-6-layers", "stack", 6, 70_000),
        ("phase1", "stack", 12, 280_000),
    ]
    first, second, third = (lambda step, stage=stage: stage.schedule.learning_rate_at(step) for stage in found)
    # method: 8e-4 after 10,000 steps, 5.5e-4 and 3e-4 at the borders, 1.95e-4 at the end; straight lines.
    assert first(9_999) == pytest.approx(8e-4) and first(4_999) == pytest.approx(4e-4)
    assert first(29_999) == pytest.approx(6.75e-4)
    assert first(49_999) == pytest.approx(5.5e-4) and second(0) == pytest.approx(5.5e-4, rel=1e-4)
    assert second(69_999) == pytest.approx(3e-4) and third(0) == pytest.approx(3e-4, rel=1e-4)
    assert third(279_999) == pytest.approx(1.95e-4)
    assert [stage.first_position for stage in found] == [0, 50_000 * 960, 120_000 * 960]
    layer_steps = 3 * 50_000 + 6 * 70_000 + 12 * 280_000
    described = planned(recipe).content()
    encoder = planned(paper(plan=["phase1"])).content()
    assert 1 - layer_steps / (12 * 400_000) == pytest.approx(0.181, abs=1e-3)
    assert described["dense_flops"] == encoder["flops"]
    assert 0.819 < described["flops"] / described["dense_flops"] < 0.84


@pytest.mark.parametrize("schedule", ["poly", "poly_continuous"])
def test_one_curve_whatever_is_stacked(schedule: Form) -> None:
    """Without learning rates of its own a growing phase 1 has, step for step, the dense run's; at any budget."""
    for steps in (40, 1_001):
        grows = paper(stack=Stack(layers=[3, 6], until=[0.125, 0.3]), schedule=schedule)
        grows = dataclasses.replace(grows, phase1=dataclasses.replace(grows.phase("phase1"), steps=steps, warmup=0.2))
        (dense,) = build_stages(dataclasses.replace(grows, plan=["phase1"]))
        rates = [stage.schedule.learning_rate_at(i) for stage in build_stages(grows) for i in range(stage.steps)]
        assert rates == [dense.schedule.learning_rate_at(step) for step in range(steps)]


def facts(each: PlannedStage) -> tuple[str, str, bool, int, int, int]:
    stage = each.stage
    layers = each.network.num_hidden_layers
    return stage.name, stage.begin.word, each.narrow, layers, stage.schedule.start, stage.steps


def test_ticket_then_stack() -> None:
    """The search is over the shallow network in the full time; all parts of phase 1 are narrow and shorter."""
    recipe = paper(plan=["search", "narrow", "phase1", "stack", "phase1", "stack", "phase1", "phase2"])
    check_recipe(recipe)
    plan = planned(recipe)
    assert [(*facts(each), each.stage.schedule.total) for each in plan.stages] == [
        ("search", "initial", False, 3, 0, 400, 400_000),
        ("phase1-3-layers", "narrow", True, 3, 0, 40_000, 320_000),
        ("phase1-6-layers", "stack", True, 6, 40_000, 56_000, 320_000),
        ("phase1", "stack", True, 12, 96_000, 224_000, 320_000),
        ("phase2", "lengthen", True, 12, 0, 32_000, 32_000),
    ]
    heads, neurons = [[*range(5)], [*range(12)], [4]], [[*range(64)], [*range(9)], [*range(3_000)]]
    ticket = make_ticket(at_depth(plan.full, 3), heads, neurons)
    assert plan.ticket_shape == ticket.model
    plan = plan.with_ticket(ticket, "the ticket")
    assert plan.network(4).kept_neurons == ticket.neurons * 4
    model = plan.network(3)
    assert model.heads == [5, 12, 1] * 4 and model.ticket_sha256 == ticket.sha256


def test_stack_then_ticket() -> None:
    """The search begins where the last stack left off, and its steps count: the narrow network goes on after them."""
    recipe = paper(plan=["phase1", "stack", "phase1", "stack", "search", "narrow", "phase1", "phase2"])
    recipe = dataclasses.replace(recipe, narrow=dataclasses.replace(recipe.narrow, rewind="searched"))
    check_recipe(recipe)
    plan = planned(recipe)
    assert [facts(each) for each in plan.stages] == [
        ("phase1-3-layers", "initial", False, 3, 0, 40_000),
        ("phase1-6-layers", "stack", False, 6, 40_000, 56_000),
        ("search", "stack", False, 12, 96_000, 400),
        ("phase1", "narrow", True, 12, 96_400, 223_600),
        ("phase2", "lengthen", True, 12, 0, 32_000),
    ]
    search, phase1 = (each.stage.schedule for each in plan.stages[2:4])
    assert phase1.learning_rate_at(0) < search.learning_rate_at(399)
    assert plan.network(2).searching
    assert plan.ticket_shape == full_shape(plan.full)


GROWN = ["phase1", "stack", "phase1", "stack"]
NONSENSE: list[tuple[dict[str, Any], list[str]]] = [
    ({"plan": []}, ["plan is []", "at least one stage"]),
    ({"plan": ["stack", "phase1"]}, ["begins with training", "at its beginning", "not stack"]),
    ({"plan": ["phase1", "stack"]}, ["after stack must come phase1 or search", "not nothing"]),
    ({"plan": ["phase1", "phase1"]}, ["phase 1 is one stage until the network is stacked", "not phase1"]),
    ({"plan": ["phase1", "phase2", "stack", "phase1"]}, ["phase 2 is the last stage", "not stack"]),
    ({"plan": ["search", "stack", "phase1"]}, ["after search must come narrow or nothing", "not stack"]),
    ({"plan": ["search", "narrow", "stack", "phase1"]}, ["a narrow network is there to be trained", "not stack"]),
    ({"plan": ["phase1", "search", "narrow", "phase1"]}, ["after phase1 must come", "not search"]),
    ({"plan": ["phase1", "stack", "narrow", "phase1"], "ticket": "t.json"}, ["to come first with a ticket file"]),
    (
        {"plan": ["search", "narrow", "phase1", "stack", "search", "narrow", "phase1"]},
        ["search appears twice"],
    ),
    (
        {"plan": ["phase1", "stack", "phase1", "stack", "search", "narrow", "phase1"]},
        ['narrow.rewind is "initial"', "throw away"],
    ),
    (
        {"plan": [*GROWN, "search", "narrow", "phase2"], "narrow": Narrow(rewind="searched")},
        ["phase 1 would end half-way", "after narrow must come phase1"],
    ),
    (
        {"plan": [*GROWN, "search"], "search": SearchConfig(stop_window=3)},
        ["search.stop_window is 3", "must be 0 after a stack"],
    ),
    ({"stack": Stack(layers=[3], until=[0.1, 0.2])}, ["stack.layers is [3]", "2"]),
    ({"stack": Stack(layers=[3, 6], until=[0.1])}, ["stack.until is [0.1]", "2"]),
    ({"stack": Stack(layers=[4, 6], until=[0.1, 0.2])}, ["stack.layers is [4, 6]", "divisor", "12"]),
    ({"stack": Stack(layers=[6, 12], until=[0.1, 0.2])}, ["stack.layers is [6, 12]", "12"]),
    ({"stack": Stack(layers=[0, 6], until=[0.1, 0.2])}, ["stack.layers is [0, 6]"]),
    ({"stack": Stack(layers=[3, 6], until=[0.3, 0.2])}, ["stack.until is [0.3, 0.2]", "ascending"]),
    ({"stack": Stack(layers=[3, 6], until=[0.3, 1.0])}, ["stack.until is [0.3, 1.0]", "between 0 and 1"]),
    ({"stack": Stack(layers=[3, 6], until=[0.1, 0.1000001])}, ["phase1-6-layers 0 of 400000 steps"]),
    (
        {"stack": Stack(layers=[3, 6], until=[0.1, 0.2], learning_rates=[1e-4])},
        ["stack.learning_rates is [0.0001]", "3"],
    ),
    (
        {"stack": Stack(layers=[3, 6], until=[0.02, 0.2], learning_rates=[1e-4] * 3)},
        ["phase1.warmup is 0.025, 10000 steps", "before the first of these rates, at step 8000"],
    ),
]


@pytest.mark.parametrize(("changes", "parts"), NONSENSE)
def test_a_plan_without_sense_is_refused_in_one_sentence(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_recipe(paper(**changes))
    sentence = str(caught.value)
    assert "\n" not in sentence and all(part in sentence for part in parts), sentence


def test_a_search_must_leave_its_part_of_phase_1_a_step() -> None:
    recipe = paper(plan=["phase1", "stack", "search", "narrow", "phase1"], stack=Stack(layers=[6], until=[0.5]))
    recipe = dataclasses.replace(recipe, narrow=dataclasses.replace(recipe.narrow, rewind="searched"))
    fits = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, steps=159_999))
    check_recipe(fits)
    with pytest.raises(UserError, match="leaves phase1 0 of 320000 steps"):
        check_recipe(dataclasses.replace(fits, search=dataclasses.replace(fits.search, steps=160_000)))
