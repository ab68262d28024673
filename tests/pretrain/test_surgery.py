"""Cutting, widening, baking and renaming: what must stay the same function, and what must not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM, BertForPreTraining

from earlybert.core.errors import UserError
from earlybert.pretrain.network.bert_format import from_bert, to_bert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.parameters import facts_of, layer_of, parameter_shapes
from earlybert.pretrain.network.surgery import bake_coefficients, narrow_weights, widen_weights
from earlybert.pretrain.ticket.drawing import all_ticket
from earlybert.pretrain.ticket.ticket import Ticket, full_shape, narrow_config
from tests.conftest import gradient_of
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

HEAD_SIZE = 8


def scores(config: NetworkConfig, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Both heads' logits in float64; padding rows left out."""
    with torch.no_grad():
        output = padded_logits(build(config, weights, torch.float64), **random_inputs())
    return output.prediction_logits[..., :VOCABULARY], output.seq_relationship_logits


def assert_same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def with_masking_coefficients(weights: dict[str, Tensor], ticket: Ticket) -> dict[str, Tensor]:
    """Coefficient 1 on what the ticket keeps, 0 on the rest."""
    masked = dict(weights)
    for kind, part, units in (("heads", "attention", 4), ("neurons", "feed_forward", 48)):
        for layer, kept in enumerate(getattr(ticket, kind)):
            masked[f"layers.{layer}.{part}.output.coefficients"] = torch.tensor(
                [float(unit in kept) for unit in range(units)]
            )
    return masked


HEADS_ONLY = [[1, 3], [2], [0]], [[*range(48)]] * 3
NEURONS_ONLY = [[0, 1, 2, 3]] * 3, [[7], [*range(10, 40)], [*range(47)]]


@pytest.mark.parametrize("cut", [HEADS_ONLY, NEURONS_ONLY, None], ids=["heads", "neurons", "both"])
def test_masking_units_in_the_wide_network_is_cutting_them(cut: tuple[list, list] | None) -> None:
    full = small_config()
    weights = random_weights(full)
    ticket = unequal_ticket(full) if cut is None else make_ticket(full, *cut)
    wide = scores(small_config(searching=True), with_masking_coefficients(weights, ticket))
    assert_same(scores(narrow_config(full, ticket), narrow_weights(full, weights, ticket)), wide)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_cutting_one_unit_changes_the_function(kind: str, layer: int) -> None:
    full = small_config()
    weights = random_weights(full)
    heads, neurons = [[*range(4)] for _ in range(3)], [[*range(48)] for _ in range(3)]
    {"heads": heads, "neurons": neurons}[kind][layer].remove(2)
    ticket = make_ticket(full, heads, neurons)
    narrow, _ = scores(narrow_config(full, ticket), narrow_weights(full, weights, ticket))
    wide, _ = scores(full, weights)
    assert float((narrow - wide).abs().max()) > 1e-2


def test_ticket_that_keeps_everything_changes_nothing() -> None:
    full = small_config()
    weights, ticket = random_weights(full), all_ticket(full_shape(full))
    for result in (narrow_weights(full, weights, ticket), widen_weights(full, weights, ticket)):
        assert result.keys() == weights.keys()
        assert all(torch.equal(result[name], weights[name]) for name in weights)


def test_every_kept_number_comes_from_its_place() -> None:
    """Parameters numbered in a row, so that each value says where it stood; moments are cut by the same function."""
    full = small_config()
    ticket = unequal_ticket(full)
    numbered = {
        name: torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
        for name, shape in parameter_shapes(full).items()
    }
    narrow = narrow_weights(full, numbered, ticket)
    assert {name: tensor.shape for name, tensor in narrow.items()} == parameter_shapes(narrow_config(full, ticket))
    for layer, (heads, neurons) in enumerate(zip(ticket.heads, ticket.neurons, strict=True)):
        attention, feed_forward = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        columns = [head * HEAD_SIZE + offset for head in heads for offset in range(HEAD_SIZE)]
        rows = [part * 32 + column for part in range(3) for column in columns]
        expected = {
            f"{attention}.qkv.weight": [[row * 32 + i for i in range(32)] for row in rows],
            f"{attention}.qkv.bias": rows,
            f"{attention}.output.weight": [[o * 32 + column for column in columns] for o in range(32)],
            f"{feed_forward}.intermediate.weight": [[neuron * 32 + i for i in range(32)] for neuron in neurons],
            f"{feed_forward}.intermediate.bias": list(neurons),
            f"{feed_forward}.output.weight": [[o * 48 + neuron for neuron in neurons] for o in range(32)],
        }
        for name, values in expected.items():
            assert torch.equal(narrow[name], torch.tensor(values, dtype=torch.float64)), name
        assert torch.equal(narrow[f"{attention}.output.bias"], numbered[f"{attention}.output.bias"])
        assert torch.equal(narrow[f"{feed_forward}.output.bias"], numbered[f"{feed_forward}.output.bias"])
    outside = [name for name in numbered if not name.startswith("layers.")]
    assert all(torch.equal(narrow[name], numbered[name]) for name in outside) and len(outside) > 5


def test_coefficients_are_left_out_of_the_narrow_network() -> None:
    searching = small_config(searching=True)
    ticket = unequal_ticket(searching)
    narrow = narrow_weights(searching, random_weights(searching), ticket)
    assert narrow.keys() == parameter_shapes(narrow_config(searching, ticket)).keys()
    assert not any("coefficients" in name for name in narrow)


def test_narrow_configuration_records_the_ticket() -> None:
    full = small_config(searching=True)
    ticket = unequal_ticket(full)
    narrow = narrow_config(full, ticket)
    assert (narrow.heads, narrow.neurons) == ([3, 1, 4], [5, 47, 20])
    assert narrow.kept_heads == ((0, 2, 3), (1,), (0, 1, 2, 3))
    assert (narrow.ticket_sha256, narrow.searching) == (ticket.sha256, False)
    assert (full.kept_heads, full.searching) == (None, True)


def test_ticket_of_another_model_is_refused() -> None:
    ticket = unequal_ticket(small_config())
    with pytest.raises(UserError, match="intermediate_size 48; here it must be 64"):
        narrow_config(small_config(intermediate_size=64), ticket)


def test_widened_network_computes_what_the_narrow_one_does() -> None:
    full = small_config()
    ticket = unequal_ticket(full)
    narrow = narrow_weights(full, random_weights(full), ticket)
    wide = widen_weights(full, narrow, ticket)
    assert {name: tensor.shape for name, tensor in wide.items()} == parameter_shapes(full)
    assert_same(scores(full, wide), scores(narrow_config(full, ticket), narrow))


def test_widening_puts_every_unit_back_in_its_place() -> None:
    full = small_config()
    weights, ticket = random_weights(full), unequal_ticket(full)
    wide = widen_weights(full, narrow_weights(full, weights, ticket), ticket)
    for name, original in weights.items():
        units, axis = facts_of(name).unit, facts_of(name).unit_axis
        if units is None or axis is None:
            assert torch.equal(wide[name], original)
            continue
        kept = set(getattr(ticket, units)[layer_of(name)])
        per_unit = HEAD_SIZE if units == "heads" else 1
        for index in range(original.shape[axis]):
            unit = index % (32 if units == "heads" else 48) // per_unit
            expected = original.select(axis, index) * float(unit in kept)
            assert torch.equal(wide[name].select(axis, index), expected), name


def searched_network() -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Coefficients around 1, one of them negative."""
    config = small_config(searching=True)
    weights = random_weights(config)
    weights["layers.1.attention.output.coefficients"][2] = -0.6
    return config, weights


def gradients(config: NetworkConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a smooth function of all logits, in float64."""
    model = build(config, weights, torch.float64)
    output = padded_logits(model, **random_inputs())
    (output.prediction_logits[..., :VOCABULARY].square().mean() + output.seq_relationship_logits.exp().sum()).backward()
    return {name: gradient_of(parameter) for name, parameter in model.named_parameters()}


def test_baking_coefficients_keeps_the_function() -> None:
    config, weights = searched_network()
    baked, _ = bake_coefficients(weights, {})
    assert baked.keys() == parameter_shapes(small_config()).keys()
    # The products are rounded to the weights' fp32.
    for one, other in zip(scores(small_config(), baked), scores(config, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_baking_leaves_its_arguments_alone() -> None:
    _, weights = searched_network()
    moments = {"exp_avg": {name: torch.ones_like(tensor) for name, tensor in weights.items()}}
    bake_coefficients(weights, moments)
    assert all(torch.equal(tensor, searched_network()[1][name]) for name, tensor in weights.items())
    assert all((tensor == 1).all() for tensor in moments["exp_avg"].values())


def test_baked_moments_are_those_of_the_baked_weights() -> None:
    """After one step the moments are proportional to the gradient and its square, so both must turn into those of
    the baked network, which autograd finds by itself."""
    config, weights = searched_network()
    weights = {name: tensor.double() for name, tensor in weights.items()}
    before = gradients(config, weights)
    moments = {"exp_avg": before, "exp_avg_sq": {name: gradient.square() for name, gradient in before.items()}}
    baked, baked_moments = bake_coefficients(weights, moments)
    after = gradients(small_config(), baked)
    changed = 0
    for name, gradient in after.items():
        torch.testing.assert_close(baked_moments["exp_avg"][name], gradient, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(baked_moments["exp_avg_sq"][name], gradient.square(), rtol=1e-5, atol=1e-12)
        changed += not torch.allclose(before[name], gradient, rtol=1e-3)
    assert changed == 6
    assert all(tensors.keys() == baked.keys() for tensors in baked_moments.values())


def test_moments_of_a_dead_unit_start_from_zero() -> None:
    _, weights = searched_network()
    weights["layers.0.feed_forward.output.coefficients"][5] = 0.0
    weights["layers.0.attention.output.coefficients"][1] = 1e-9
    ones = {name: torch.ones_like(tensor) for name, tensor in weights.items()}
    baked, moments = bake_coefficients(weights, {"exp_avg": ones, "exp_avg_sq": ones})
    for kind in ("exp_avg", "exp_avg_sq"):
        neurons = moments[kind]["layers.0.feed_forward.output.weight"]
        heads = moments[kind]["layers.0.attention.output.weight"].unflatten(1, (4, HEAD_SIZE))
        assert [i for i in range(48) if not neurons[:, i].any()] == [5]
        assert [head for head in range(4) if not heads[:, head].any()] == [1]
        assert all(torch.isfinite(tensor).all() for tensor in moments[kind].values())
    assert not baked["layers.0.feed_forward.output.weight"][:, 5].any()


def test_moments_of_a_nearly_dead_unit_start_from_zero() -> None:
    """Divided by 0.0005 they would be steps of other units two thousand times over; by 0.002 they are kept."""
    _, weights = searched_network()
    weights["layers.2.feed_forward.output.coefficients"][:3] = torch.tensor([5e-4, 2e-3, -2e-3])
    ones = {name: torch.ones_like(tensor) for name, tensor in weights.items()}
    _, moments = bake_coefficients(weights, {"exp_avg": ones, "exp_avg_sq": ones})
    for kind, expected in (("exp_avg", [0.0, 500.0, -500.0]), ("exp_avg_sq", [0.0, 25e4, 25e4])):
        found = moments[kind]["layers.2.feed_forward.output.weight"][:, :3]
        torch.testing.assert_close(found, torch.tensor(expected).expand(32, 3))


@pytest.mark.parametrize("next_sentence", [True, False])
def test_bert_form_round_trip(next_sentence: bool) -> None:
    config = small_config(losses=("masked", "next_sentence")[: 1 + next_sentence])
    weights = random_weights(config)
    weights["masked_token.bias"][VOCABULARY:] = 0.0
    model = to_bert(config, weights)
    assert type(model) is (BertForPreTraining if next_sentence else BertForMaskedLM)
    found_config, found = from_bert(model.config, model.state_dict())
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert found_config == config


@pytest.mark.parametrize("next_sentence", [True, False])
def test_from_bert_and_back_gives_the_same_tensors(next_sentence: bool) -> None:
    bert = random_bert(next_sentence=next_sentence)
    back = to_bert(*from_bert(bert.config, bert.state_dict()))
    expected, found = bert.state_dict(), back.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("next_sentence", [True, False])
def test_padded_bert_form_computes_what_the_narrow_network_does(next_sentence: bool) -> None:
    full = small_config(losses=("masked", "next_sentence")[: 1 + next_sentence])
    ticket = unequal_ticket(full)
    narrow = narrow_weights(full, random_weights(full), ticket)
    bert = to_bert(full, widen_weights(full, narrow, ticket)).double().eval()
    inputs = random_inputs()
    with torch.no_grad():
        ours = padded_logits(build(narrow_config(full, ticket), narrow, torch.float64), **inputs)
        theirs = bert(**inputs)
    logits = theirs.prediction_logits if next_sentence else theirs.logits
    torch.testing.assert_close(ours.prediction_logits[..., :VOCABULARY], logits, rtol=1e-10, atol=1e-10)
    if next_sentence:
        torch.testing.assert_close(ours.seq_relationship_logits, theirs.seq_relationship_logits, rtol=1e-10, atol=1e-10)


def test_bert_form_keeps_its_tie() -> None:
    config = small_config()
    model: Any = to_bert(config, random_weights(config))
    assert model.config.tie_word_embeddings
    table, decoder = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert decoder.weight.data_ptr() == table.weight.data_ptr()
    assert decoder.bias.data_ptr() == model.cls.predictions.bias.data_ptr()


def test_initial_weights_depend_on_seed_and_name_only() -> None:
    """Rewinding remembers nothing: searching or not, the same parameter begins with the same values."""
    plain, searching = initial_weights(small_config(), 5), initial_weights(small_config(searching=True), 5)
    assert all(torch.equal(searching[name], plain[name]) for name in plain)
    assert all((searching[name] == 1).all() for name in searching.keys() - plain.keys())
    other = initial_weights(small_config(), 6)
    weight = "layers.0.attention.qkv.weight"
    assert not torch.equal(other[weight], plain[weight])
    assert not torch.equal(plain["layers.1.attention.qkv.weight"], plain[weight])
    assert not plain["embeddings.word_embeddings.weight"][VOCABULARY:].any()
    assert float(plain[weight].std()) == pytest.approx(0.02, rel=0.05)
