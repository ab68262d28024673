"""The table of parameters against the modules themselves, and against sets and counts made by hand."""

import dataclasses
from collections import Counter
from math import prod

import pytest
import torch
from small_models import small_config, unequal_ticket

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.model import PreTrainingNetwork, meta_network
from earlybert.pretrain.network.parameters import depth_of, facts_of, network_parameters, parameter_shapes
from earlybert.pretrain.ticket.ticket import narrow_config

CONFIGS = {
    "base": NetworkConfig(),
    "large": NetworkConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "small": small_config(),
    "one layer": small_config(num_hidden_layers=1, vocab_size=128, type_vocab_size=3),
    "searching": small_config(searching=True),
    "without next sentence": small_config(losses=("masked",)),
    "narrow": narrow_config(small_config(), unequal_ticket(small_config())),
    "narrow, searching": dataclasses.replace(
        narrow_config(small_config(), unequal_ticket(small_config())), searching=True
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_names_and_shapes_are_those_of_the_modules_in_their_order(config: NetworkConfig) -> None:
    """Each parameter exactly once: the table is all that the shapes are made of."""
    assert list(parameter_shapes(config).items()) == [
        (name, tuple(parameter.shape)) for name, parameter in meta_network(config).named_parameters()
    ]


def test_counts_made_by_hand() -> None:
    """Three layers of 32 with 4 heads and 48 neurons, 101 + 27 vocabulary rows, 40 positions, 2 segments."""
    facts = network_parameters(small_config(searching=True))
    assert len(facts) == 5 + 3 * 14 + 5 + 4
    roles = Counter(each.role for each in facts.values())
    assert roles == {"weight": 3 + 3 * 4 + 1 + 2, "norm": 1 + 3 * 2 + 1, "bias": 1 + 3 * 6 + 3 + 2, "coefficients": 6}
    in_heads = 3 * (3 * 32 * 32 + 3 * 32 + 32 * 32 + 4)
    in_neurons = 3 * (48 * 32 + 48 + 32 * 48 + 48)
    shapes = parameter_shapes(small_config(searching=True))
    elements = {
        units: sum(prod(shapes[name]) for name, each in facts.items() if each.unit == units)
        for units in ("heads", "neurons")
    }
    assert elements == {"heads": in_heads, "neurons": in_neurons}
    outside = (128 + 40 + 2) * 32 + 2 * 32 + (32 * 32 + 32 + 2 * 32 + 128) + (32 * 32 + 32 + 2 * 32 + 2)
    in_neither = 3 * (2 * 32 + 2 * 2 * 32)
    assert sum(map(prod, shapes.values())) == in_heads + in_neurons + outside + in_neither


def test_sets_made_by_hand() -> None:
    facts = network_parameters(small_config(num_hidden_layers=1, searching=True))
    layer = "layers.0."
    assert {name for name, each in facts.items() if each.row_blocks == 3} == {
        f"{layer}attention.qkv.weight",
        f"{layer}attention.qkv.bias",
    }
    assert all(each.row_blocks in (1, 3) for each in facts.values())
    assert {name for name, each in facts.items() if each.pads_vocabulary} == {
        "embeddings.word_embeddings.weight",
        "masked_token.bias",
    }
    assert {name: (each.unit, each.unit_axis) for name, each in facts.items() if each.unit} == {
        f"{layer}attention.qkv.weight": ("heads", 0),
        f"{layer}attention.qkv.bias": ("heads", 0),
        f"{layer}attention.output.weight": ("heads", 1),
        f"{layer}attention.output.coefficients": ("heads", 0),
        f"{layer}feed_forward.intermediate.weight": ("neurons", 0),
        f"{layer}feed_forward.intermediate.bias": ("neurons", 0),
        f"{layer}feed_forward.output.weight": ("neurons", 1),
        f"{layer}feed_forward.output.coefficients": ("neurons", 0),
    }


def test_what_is_decayed_are_matrices_and_embeddings() -> None:
    """As the modules themselves say it: the weights of linear layers and tables, and nothing else."""
    network = PreTrainingNetwork(small_config(searching=True))
    matrices = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    }
    assert {name for name, _ in network.named_parameters() if facts_of(name).decayed} == matrices


def test_initial_values_are_those_of_the_modules_where_they_are_not_random() -> None:
    """PyTorch itself begins LayerNorms with ones and zeros; biases of linear layers are zero in BERT."""
    network = PreTrainingNetwork(small_config(searching=True))
    weights = initial_weights(network.config, seed=3)
    norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    for name, parameter in network.named_parameters():
        module, _, last = name.rpartition(".")
        if module in norms or last == "coefficients":
            assert torch.equal(weights[name], parameter), name
        elif last == "bias":
            assert not weights[name].any(), name
        else:
            rows = slice(network.config.vocab_size if name.startswith("embeddings.word") else None)
            assert float(weights[name][rows].std()) == pytest.approx(0.02, rel=0.2), name


@pytest.mark.parametrize("head", ["classifier", "qa_outputs", "sentence_order.transform.dense"])
def test_a_head_that_is_in_no_table_is_trained_by_its_names(head: str) -> None:
    assert facts_of(f"{head}.weight").decayed and facts_of(f"{head}.weight").initially == "normal"
    assert not facts_of(f"{head}.bias").decayed and facts_of(f"{head}.bias").initially == "zeros"
    norm = facts_of(f"{head}.LayerNorm.weight")
    assert not norm.decayed and norm.initially == "ones"
    assert norm.unit is None and not norm.pads_vocabulary and norm.row_blocks == 1


def test_names_say_the_same_whether_they_are_in_the_table_or_not() -> None:
    for name, facts in network_parameters(small_config()).items():
        assert facts_of(f"head.of.anyone.{name}").role == facts.role, name


def test_a_name_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'layers\.0\.attention\.scale' .* must end with weight or bias"):
        facts_of("layers.0.attention.scale")


def test_depth_is_that_of_the_highest_layer() -> None:
    assert depth_of(parameter_shapes(small_config(num_hidden_layers=11))) == 11
    assert depth_of(["layers.4.attention.qkv.bias", "layers.2.attention.qkv.bias"]) == 5
    assert depth_of(parameter_shapes(NetworkConfig())) == 12
