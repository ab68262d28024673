"""Giving cut units back: the function stays the same in every composition with stacking, and what is new can learn."""

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.kernels.sizes import MOMENTS
from earlybert.pretrain.network.bert_format import to_bert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.plan.borders.coefficients import Coefficients
from earlybert.pretrain.plan.borders.narrow import Narrow
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.borders.widen import Widen
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import Plan
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path
from earlybert.pretrain.ticket.drawing import all_ticket
from earlybert.pretrain.ticket.ticket import Ticket, full_shape, narrow_config
from tests.pretrain.small_models import (
    VOCABULARY,
    batch_of,
    build,
    gradients_of_step,
    make_ticket,
    padded_logits,
    random_inputs,
    random_weights,
    small_config,
    unequal_ticket,
)

HEAD_SIZE = 8
FRESH = partial(initial_weights, seed=3)


def logits(config: NetworkConfig, weights: Any) -> Tensor:
    with torch.no_grad():
        output = padded_logits(build(config, dict(weights), torch.float64), **random_inputs())
    return output.prediction_logits[..., :VOCABULARY]


def recipe_of(plan: list[str], **changes: Any) -> Recipe:
    recipe = load_recipe(recipe_path("bert_base"), ["--draw.width_multiple", "1"])
    return dataclasses.replace(recipe, plan=plan, **changes)


def random_ticket_for(plan: Plan) -> Ticket:
    """Other widths in every layer."""
    layers = plan.ticket_shape.num_layers
    heads = [[0, 2, 3], [1], [0, 1, 3]]
    neurons = [[0, 3, 17, 31, 47], [*range(1, 48)], [*range(0, 40, 2)]]
    config = small_config(num_hidden_layers=layers)
    return make_ticket(config, [heads[i % 3] for i in range(layers)], [neurons[i % 3] for i in range(layers)])


IDENTITY = {"stack": Stack(layers=[3], until=[0.3], copy="identity")}
COMPOSITIONS: list[tuple[list[str], dict[str, Any]]] = [
    (["search", "narrow", "phase1", "widen", "phase1"], {"widen": Widen(until=[0.5])}),
    (
        ["search", "narrow", "phase1", "stack", "phase1", "widen", "phase1"],
        {"widen": Widen(until=[0.5])} | IDENTITY,
    ),
    (
        ["search", "narrow", "phase1", "widen", "phase1", "stack", "phase1"],
        {"widen": Widen(until=[0.2])} | IDENTITY,
    ),
    (
        ["phase1", "stack", "search", "narrow", "phase1", "widen", "phase1", "phase2"],
        {"widen": Widen(until=[0.5]), "narrow": Narrow(rewind="searched")} | IDENTITY,
    ),
    (
        ["search", "narrow", "phase1", "widen", "phase1", "stack", "phase1", "widen", "phase1", "phase2"],
        {"widen": Widen(until=[0.2, 0.6], to=["all_neurons", "full"])} | IDENTITY,
    ),
    (
        ["search", "narrow", "phase1", "stack", "phase1", "widen", "phase1", "widen", "phase1"],
        {"widen": Widen(until=[0.5, 0.6], to=["all_heads", "all_neurons"])} | IDENTITY,
    ),
    (
        ["phase1", "coefficients", "search", "narrow", "phase1", "widen", "phase1"],
        {
            "widen": Widen(until=[0.5]),
            "narrow": Narrow(rewind="searched"),
            "coefficients": Coefficients(until=[0.2]),
        },
    ),
]


@pytest.mark.parametrize("moments", ["reset", "copied"])
@pytest.mark.parametrize(("words", "changes"), COMPOSITIONS, ids=[" ".join(words) for words, _ in COMPOSITIONS])
def test_the_function_stays_in_every_composition(words: list[str], changes: dict[str, Any], moments: Any) -> None:
    """From the narrow network on: stacking by identity and widening, with other weights trained in every stage."""
    changes = changes | {"widen": dataclasses.replace(changes["widen"], moments=moments)}
    recipe = recipe_of(words, **changes)
    check_recipe(recipe)
    depth = 6 if "stack" in words else 3
    plan = Plan(recipe, small_config(num_hidden_layers=depth))
    plan = plan.with_ticket(random_ticket_for(plan), "the ticket")
    widened = 0
    for number, (before, after) in enumerate(pairwise(plan.stages)):
        if after.stage.begin.word not in ("stack", "widen") or not (before.narrow or after.stage.turn):
            continue
        narrow, wide = plan.network(number), plan.network(number + 1)
        trained = TrainingState(
            random_weights(narrow, seed=number),
            {moment: random_weights(narrow, seed=7) for moment in MOMENTS},
            optimizer_step=9,
        )
        begun = after.stage.begin.begin(trained, after.before, wide, FRESH)
        assert {name: tensor.shape for name, tensor in begun.weights.items()} == parameter_shapes(wide)
        torch.testing.assert_close(logits(wide, begun.weights), logits(narrow, trained.weights), rtol=0, atol=1e-6)
        if after.stage.begin.word == "widen":
            widened += 1
            assert begun.optimizer_step == (9 if moments == "copied" else 0)
            assert set(begun.moments) == (set(MOMENTS) if moments == "copied" else set())
            assert all({n: t.shape for n, t in m.items()} == parameter_shapes(wide) for m in begun.moments.values())
    last = plan.stages[-1]
    assert widened == words.count("widen") and not last.narrow and last.network == plan.full
    assert last.needs_ticket, "checkpoints go on saying which ticket had a part in them"


def units(config: NetworkConfig, layer: int) -> tuple[list[int], list[int]]:
    """Which heads and neurons of the full layer are there."""
    kept = config.kept_units
    if kept is None:
        return list(range(config.num_attention_heads)), list(range(config.intermediate_size))
    return list(kept.heads[layer]), list(kept.neurons[layer])


def unit_tensors(config: NetworkConfig, weights: Any, layer: int) -> dict[tuple[str, int], list[Tensor]]:
    """By unit of the full network: everything that leads in, then what leads out. Cut by plain slicing."""
    name = f"layers.{layer}"
    heads, neurons = units(config, layer)
    qkv, bias = weights[f"{name}.attention.qkv.weight"], weights[f"{name}.attention.qkv.bias"]
    out = weights[f"{name}.attention.output.weight"]
    inner = (weights[f"{name}.feed_forward.intermediate.{kind}"] for kind in ("weight", "bias"))
    rows, row_bias = inner
    down = weights[f"{name}.feed_forward.output.weight"]
    found: dict[tuple[str, int], list[Tensor]] = {}
    for place, head in enumerate(heads):
        here = slice(HEAD_SIZE * place, HEAD_SIZE * (place + 1))
        into = [block[here] for tensor in (qkv, bias) for block in tensor.chunk(3)]
        found["head", head] = [*into, out[:, here]]
    for place, neuron in enumerate(neurons):
        found["neuron", neuron] = [rows[place], row_bias[place], down[:, place]]
    return found


@pytest.mark.parametrize("to", ["all_heads", "all_neurons", "full"])
def test_every_unit_is_in_its_own_place(to: Any) -> None:
    """Kept ones as they were, with their moments; new ones as a fresh full network has them, nothing leading out."""
    full = small_config()
    narrow = narrow_config(full, unequal_ticket(full))
    border = Widen(until=[0.5], to=[to], moments="copied")
    wide = border.network(narrow, full, None, 0)
    assert wide.heads == ([3, 1, 4] if to == "all_neurons" else [4] * 3)
    assert wide.neurons == ([5, 47, 20] if to == "all_heads" else [48] * 3)
    assert (wide == full) == (to == "full") and (wide.ticket_sha256 is None) == (to == "full")
    trained = TrainingState(
        random_weights(narrow), {moment: random_weights(narrow, seed=4 + i) for i, moment in enumerate(MOMENTS)}, 5
    )
    begun = border.begin(trained, narrow, wide, FRESH)
    fresh = FRESH(full)
    for layer in range(3):
        initial = unit_tensors(full, fresh, layer)
        for kind, old, new in [
            ("master", trained.weights, begun.weights),
            *((moment, trained.moments[moment], begun.moments[moment]) for moment in MOMENTS),
        ]:
            before, after = unit_tensors(narrow, old, layer), unit_tensors(wide, new, layer)
            assert before.keys() <= after.keys()
            for unit, tensors in after.items():
                nothing = [torch.zeros_like(tensor) for tensor in tensors]
                came_back = [*initial[unit][:-1], nothing[-1]] if kind == "master" else nothing
                for found, expected in zip(tensors, before.get(unit, came_back), strict=True):
                    assert torch.equal(found, expected), (layer, unit, kind)
    alike = [name for name in begun.weights if ".LayerNorm." in name or not name.startswith("layers.")]
    assert all(torch.equal(begun.weights[name], trained.weights[name]) for name in alike) and len(alike) > 10


def test_the_ticket_exported_as_plain_bert_is_what_widening_begins_with() -> None:
    """Hugging Face's own model on the wide weights says what the narrow network said."""
    full = small_config()
    narrow = narrow_config(full, unequal_ticket(full))
    weights = random_weights(narrow)
    wide = Widen(until=[0.5]).begin(TrainingState(weights), narrow, full, FRESH).weights
    with torch.no_grad():
        found = to_bert(full, dict(wide)).double().eval()(**random_inputs()).prediction_logits
    torch.testing.assert_close(found[..., :VOCABULARY], logits(narrow, weights), rtol=0, atol=1e-6)


def test_moments_of_one_kind_are_widened_too() -> None:
    """An optimizer may keep only a momentum of some matrices: nothing is made up for them."""
    full = small_config()
    narrow = narrow_config(full, unequal_ticket(full))
    weights = random_weights(narrow)
    some = {name: tensor for name, tensor in weights.items() if not name.endswith("qkv.weight")}
    trained = TrainingState(weights, {"exp_avg": weights, "exp_avg_sq": some}, 5)
    begun = Widen(until=[0.5], moments="copied").begin(trained, narrow, full, FRESH)
    assert begun.moments["exp_avg"].keys() == weights.keys() and begun.moments["exp_avg_sq"].keys() == some.keys()


def test_what_comes_back_learns() -> None:
    """In the first step only what leads out of a new unit has a gradient, in the second one what leads in, too."""
    full = small_config()
    narrow = narrow_config(full, unequal_ticket(full))
    trained = TrainingState(random_weights(narrow))
    model = build(full, dict(Widen(until=[0.5]).begin(trained, narrow, full, FRESH).weights), torch.float64)
    new = [
        (layer, unit)
        for layer in range(3)
        for unit in unit_tensors(full, dict(model.named_parameters()), layer)
        if unit not in unit_tensors(narrow, trained.weights, layer)
    ]
    assert len(new) == 4 + 3 * 48 - 72
    moved: list[dict[tuple[int, tuple[str, int]], list[bool]]] = []
    for step in range(2):
        gradients = gradients_of_step(model, [batch_of([9, 17, 12, 20], seed=step)])
        by_layer = [unit_tensors(full, gradients, layer) for layer in range(3)]
        moved.append({each: [bool(t.abs().max() > 0) for t in by_layer[each[0]][each[1]]] for each in new})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(gradients[name], alpha=0.1)
    for each in new:
        *into, out = moved[0][each]
        assert out and not any(into), each
        *into, out = moved[1][each]
        # The key's bias never has a gradient: softmax does not feel it.
        assert out and all(has for place, has in enumerate(into) if len(into) < 6 or place != 4), each


def test_a_ticket_that_cuts_nothing_has_nothing_to_give_back() -> None:
    full = small_config()
    everything = narrow_config(full, all_ticket(full_shape(full)))
    weights = random_weights(full)
    border = Widen(until=[0.5], moments="copied")
    assert border.network(full, full, None, 0) == full
    begun = border.begin(TrainingState(weights, {"exp_avg": weights}), everything, full, FRESH)
    for found in (begun.weights, begun.moments["exp_avg"]):
        assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_stages_and_costs_of_a_plan_that_ends_wide() -> None:
    recipe = recipe_of(COMPOSITIONS[4][0], **COMPOSITIONS[4][1] | {"stack": Stack(layers=[6], until=[0.3])})
    full = dataclasses.replace(small_config(), num_hidden_layers=12)
    stages = Plan(recipe, full).stages
    assert [(each.stage.name, each.network.heads[0], each.network.num_hidden_layers) for each in stages] == [
        ("search", 4, 6),
        ("phase1-narrow-1", 3, 6),
        ("phase1-6-layers", 3, 6),
        ("phase1-narrow-2", 3, 12),
        ("phase1", 4, 12),
        ("phase2", 4, 12),
    ]
    assert [set(each.network.neurons) for each in stages[2:]] == [{48}] * 4
    flops = [each.flops_per_step for each in stages]
    assert flops[1] < flops[2] < flops[3] < flops[4] and stages[4].network == full
    steps = [each.stage.steps for each in stages]
    total = stages[1].stage.schedule.total
    assert sum(steps[1:5]) == total and steps[1] == round(0.2 * total)
    assert [each.stage.schedule.start for each in stages[1:5]] == [0, *(sum(steps[1 : i + 1]) for i in (1, 2, 3))]


NARROW_FIRST = ["search", "narrow", "phase1", "widen", "phase1"]
NONSENSE: list[tuple[list[str], Widen, str]] = [
    (["phase1", "widen", "phase1"], Widen(until=[0.5]), "widen needs narrow before it"),
    (["search", "widen", "phase1"], Widen(until=[0.5]), "after search must come narrow or nothing, not widen"),
    (["search", "narrow", "phase1", "phase1"], Widen(), "phase 1 is one stage until the network is stacked or widened"),
    (["search", "narrow", "phase1", "widen", "phase2"], Widen(until=[0.5]), "a wider network is there to be trained"),
    (NARROW_FIRST, Widen(), "widen.until is []; it must be one number for each widen of the plan, 1"),
    (NARROW_FIRST, Widen(until=[1.0]), "widen.until is [1.0]; it must be ascending, between 0 and 1"),
    (NARROW_FIRST, Widen(until=[0.5], to=["full", "full"]), "widen.to is ['full', 'full']; it must be one of all_he"),
    (
        [*NARROW_FIRST, "widen", "phase1"],
        Widen(until=[0.5, 0.6], to=["full", "all_heads"]),
        "widen.to is ['full', 'all_heads']; widen number 2 has no units to give back",
    ),
    (
        [*NARROW_FIRST, "widen", "phase1"],
        Widen(until=[0.5, 0.6]),
        "widen.to is ['full']; widen number 2 has no units to give back",
    ),
]


@pytest.mark.parametrize(("plan", "widen", "message"), NONSENSE)
def test_a_widen_without_sense_is_refused_in_one_sentence(plan: list[str], widen: Widen, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_recipe(recipe_of(plan, widen=widen))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"widen\.to"):
        load_recipe(recipe_path("bert_base"), ["--widen.to", "[wide]"])
