"""Parameters and operations against the paper's tables, Hugging Face's BERT and PyTorch's own counter."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.network.work import count_parameters, flops_per_sequence, time_saved
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import TicketRule, full_shape, narrow_config
from tests.pretrain.small_models import (
    build,
    padded_logits,
    random_inputs,
    random_weights,
    small_config,
    unequal_ticket,
)

BASE = NetworkConfig()
LARGE = NetworkConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SIZES = {"base": BASE, "large": LARGE}
# Pruned heads a layer and share of the neurons -> parameters of embeddings, encoder and pooler.
PAPER = [
    ("base", 0, 0.0, 109_482_240),
    ("base", 4, 0.4, 77_371_238),
    ("base", 4, 0.3, 83_038_157),
    ("large", 0, 0.0, 335_141_888),
    ("large", 6, 0.4, 216_794_726),
    ("large", 6, 0.3, 236_938_445),
]


def pruned_config(size: str, heads: int, neurons: float) -> NetworkConfig:
    full = SIZES[size]
    rule = TicketRule(head_ratio=heads / full.num_attention_heads, neuron_ratio=neurons, width_multiple=1)
    return narrow_config(full, random_ticket(full_shape(full), rule, seed=3))


@pytest.mark.parametrize(("size", "heads", "neurons", "parameters"), PAPER)
def test_parameters_of_the_paper(size: str, heads: int, neurons: float, parameters: int) -> None:
    assert without_heads(pruned_config(size, heads, neurons)) == parameters


def without_heads(config: NetworkConfig) -> int:
    """As papers count: embeddings, encoder and pooler, without the heads that pre-training has on top."""
    hidden = config.hidden_size
    masked_token, next_sentence = hidden * hidden + 3 * hidden + config.vocab_size, 2 * hidden + 2
    return count_parameters(config) - masked_token - next_sentence


def on_meta(kind: type[torch.nn.Module], size: str) -> int:
    full = SIZES[size]
    config = BertConfig(
        hidden_size=full.hidden_size,
        num_hidden_layers=full.num_hidden_layers,
        num_attention_heads=full.num_attention_heads,
        intermediate_size=full.intermediate_size,
    )
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(config).parameters())


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_bert(size: str) -> None:
    full = SIZES[size]
    assert without_heads(full) == on_meta(BertModel, size)
    assert count_parameters(full) == on_meta(BertForPreTraining, size)


def test_parameters_without_next_sentence_are_those_of_bert_for_masked_lm() -> None:
    assert count_parameters(NetworkConfig(losses=("masked",))) == on_meta(BertForMaskedLM, "base")


def test_searching_adds_one_parameter_per_coefficient() -> None:
    assert count_parameters(NetworkConfig(searching=True)) - count_parameters(BASE) == 37_008
    large = dataclasses.replace(LARGE, searching=True)
    assert count_parameters(large) - count_parameters(LARGE) == 98_688


def encoder_flops(config: NetworkConfig, length: int) -> float:
    return flops_per_sequence(dataclasses.replace(config, losses=()), length, 0)


@pytest.mark.parametrize(
    ("size", "heads", "neurons", "ratio"),
    [
        ("base", 4, 0.4, 0.623),
        ("base", 4, 0.3, 0.688),
        ("base", 4, 0.0, 0.883),
        ("large", 6, 0.4, 0.609),
        ("large", 6, 0.3, 0.674),
    ],
)
def test_encoder_ratios_of_the_paper(size: str, heads: int, neurons: float, ratio: float) -> None:
    narrow = encoder_flops(pruned_config(size, heads, neurons), 128)
    assert narrow / encoder_flops(SIZES[size], 128) == pytest.approx(ratio, abs=0.0006)


@pytest.mark.parametrize(
    ("length", "predictions", "dense", "narrow"), [(128, 20, 1880, 1277), (512, 80, 1993, 1348)], ids=["128", "512"]
)
def test_megaflops_per_token_of_bert_large(length: int, predictions: int, dense: int, narrow: int) -> None:
    for heads, neurons, expected in ((16, 4096, dense), (10, 2867, narrow)):
        config = dataclasses.replace(
            LARGE,
            vocab_size=30_528,
            kept_heads=(tuple(range(heads)),) * 24,
            kept_neurons=(tuple(range(neurons)),) * 24,
        )
        flops = flops_per_sequence(config, length, predictions)
        assert flops / length / 1e6 == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize("narrow", [False, True], ids=["dense", "narrow"])
def test_operations_are_those_that_pytorch_counts(narrow: bool) -> None:
    """Forward and backward, with the heads of both losses."""
    full = small_config()
    config, weights = full, random_weights(full)
    if narrow:
        ticket = unequal_ticket(full)
        config, weights = narrow_config(full, ticket), narrow_weights(full, weights, ticket)
    model = build(config, weights)
    batch, length, predictions = 4, 17, 3
    positions = torch.cat([torch.arange(predictions) + row * length for row in range(batch)])
    with FlopCounterMode(display=False) as forward:
        output = padded_logits(model, **random_inputs(), masked_positions=positions)
    with FlopCounterMode(display=False) as backward:
        (output.prediction_logits[:, : full.vocab_size].sum() + output.seq_relationship_logits.sum()).backward()
    # What pads the vocabulary is multiplied too.
    computed = dataclasses.replace(config, vocab_size=config.padded_vocab_size)
    expected = batch * flops_per_sequence(computed, length, predictions)
    assert forward.get_total_flops() + backward.get_total_flops() == expected
    assert 3 * forward.get_total_flops() == expected


@pytest.mark.parametrize(
    ("search", "train", "base", "ratio", "saved"),
    [(0.2, 2, 3, 0.7555, 0.4297), (1, 2, 3, 0.7555, 0.163), (0.2, 2, 3, 1.0, 0.267), (0, 3, 3, 1.0, 0.0)],
)
def test_time_saved_is_the_papers(search: float, train: float, base: float, ratio: float, saved: float) -> None:
    assert time_saved(search, train, base, ratio) == pytest.approx(saved, abs=0.0005)
