"""The padding-free network against the padded one: losses, next-sentence scores and every gradient, in float64."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from earlybert.kernels.packing import Packing
from earlybert.pretrain.cost.hardware import measured_peak
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import NetworkOutput, PreTrainingNetwork
from earlybert.pretrain.network.packed import PackedPlaces
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.network.work import Work, training_flops
from earlybert.pretrain.ticket.ticket import narrow_config
from tests.pretrain.small_models import VOCABULARY, build, make_ticket, random_weights, small_config, unequal_ticket

# Ragged, one-token sequences among longer ones, all of one length, a batch of one, one single token.
LENGTHS = [(17, 9, 13, 10), (1, 12, 1, 3), (8, 8, 8), (11,), (1,)]


def one_head_and_five_neurons(full: NetworkConfig) -> list[list[list[int]]]:
    return [[[2], [0], [3]], [[0, 5, 17, 31, 47]] * 3]


def network(shape: str) -> PreTrainingNetwork:
    """All units, widths that differ, the least that a layer may keep, or with coefficients."""
    full = small_config(searching=shape == "searching")
    weights = random_weights(full)
    if shape in ("dense", "searching"):
        return build(full, weights, torch.float64)
    ticket = unequal_ticket(full) if shape == "unequal" else make_ticket(full, *one_head_and_five_neurons(full))
    return build(narrow_config(full, ticket), narrow_weights(full, weights, ticket), torch.float64)


def batch_of(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Every third position is predicted, and in each sequence the last."""
    generator = torch.Generator().manual_seed(len(lengths))
    length_B1 = torch.tensor(lengths)[:, None]
    place_S = torch.arange(max(lengths))[None]
    attended = place_S < length_B1
    predicted = attended & ((place_S % 3 == 2) | (place_S == length_B1 - 1))
    positions = predicted.flatten().nonzero().flatten()
    return {
        "input_ids": torch.randint(4, VOCABULARY, attended.shape, generator=generator),
        "attention_mask": attended.long(),
        "token_type_ids": (attended & (place_S >= length_B1 // 2)).long(),
        "masked_positions": positions,
        "masked_labels": torch.randint(4, VOCABULARY, positions.shape, generator=generator),
    }


def places_of(batch: dict[str, Tensor]) -> PackedPlaces:
    return PackedPlaces.of(batch["attention_mask"], batch["masked_positions"])


def everything(places: PackedPlaces) -> PackedPlaces:
    """A last layer that computes all tokens."""
    return dataclasses.replace(
        places,
        needed=places.tokens,
        needed_rows_M=torch.arange(places.tokens.tokens),
        predicted_rows_N=places.needed_rows_M[places.predicted_rows_N],
        first_rows_B=places.needed_rows_M[places.first_rows_B],
    )


def total(output: NetworkOutput) -> Tensor:
    """A loss that every score and penalty has a part in."""
    assert output.masked_loss is not None and output.seq_relationship_logits is not None
    loss = output.masked_loss + output.seq_relationship_logits.exp().sum()
    if output.head_penalty is not None and output.neuron_penalty is not None:
        loss = loss + 0.1 * output.head_penalty + 0.2 * output.neuron_penalty
    return loss


def results(model: PreTrainingNetwork, **inputs: object) -> list[Tensor]:
    """Masked loss, correct predictions, next-sentence scores, and the gradients of all parameters."""
    model.zero_grad()
    output = model(**inputs)
    total(output).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return [output.masked_loss, output.masked_correct, output.seq_relationship_logits, *gradients]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", ["dense", "unequal", "least", "searching"])
def test_packed_is_padded(shape: str, lengths: tuple[int, ...]) -> None:
    model, batch = network(shape), batch_of(lengths)
    packed = results(model, **batch, places=places_of(batch))
    torch.testing.assert_close(packed, results(model, **batch), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", ["dense", "least"])
def test_needed_positions_of_the_last_layer_are_those_of_the_full_layer(shape: str, lengths: tuple[int, ...]) -> None:
    model, batch = network(shape), batch_of(lengths)
    places = places_of(batch)
    assert places.needed.tokens < places.tokens.tokens or max(lengths) == 1
    subset, full = (results(model, **batch, places=each) for each in (places, everything(places)))
    torch.testing.assert_close(subset, full, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_narrow_is_the_wide_network_with_coefficients_of_zero(lengths: tuple[int, ...]) -> None:
    full = small_config(searching=True)
    weights, (heads, neurons) = random_weights(small_config()), one_head_and_five_neurons(full)
    for layer in range(full.num_hidden_layers):
        for part, kept in (("attention", heads[layer]), ("feed_forward", neurons[layer])):
            coefficients = torch.zeros(4 if part == "attention" else 48)
            coefficients[kept] = 1.0
            weights[f"layers.{layer}.{part}.output.coefficients"] = coefficients
    masked_wide, narrow = build(full, weights, torch.float64), network("least")
    batch = batch_of(lengths)
    places = places_of(batch)
    with torch.no_grad():
        found, expected = narrow(**batch, places=places), masked_wide(**batch, places=places)
    torch.testing.assert_close(found.masked_loss, expected.masked_loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.seq_relationship_logits, expected.seq_relationship_logits, rtol=1e-9, atol=1e-11)


def test_padding_anywhere_in_a_sequence() -> None:
    """A mask with holes: position embeddings stay those of the places, as in Hugging Face's BERT."""
    model, batch = network("dense"), batch_of((12, 12))
    batch["attention_mask"][0, 3:5] = 0
    batch["masked_positions"], batch["masked_labels"] = torch.tensor([1, 7, 14]), torch.tensor([5, 6, 7])
    torch.testing.assert_close(
        results(model, **batch, places=places_of(batch)), results(model, **batch), rtol=1e-9, atol=1e-11
    )


def test_places_of_a_small_batch() -> None:
    """Two sequences of 3 and 2 tokens; predicted are the last of the first and the first of the second."""
    places = PackedPlaces.of(torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([2, 3]))
    assert places.token_rows_T.tolist() == [0, 1, 2, 3, 4]
    assert (places.tokens.lengths, places.needed.lengths) == ((3, 2), (2, 1))
    assert places.needed_rows_M.tolist() == [0, 2, 3]
    assert (places.predicted_rows_N.tolist(), places.first_rows_B.tolist()) == ([1, 2], [0, 2])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", ["dense", "unequal"])
def test_operations_are_those_that_pytorch_counts(
    shape: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out are the pooler and the next-sentence head, once per sequence. One block a sequence: nothing padded."""
    monkeypatch.setattr("earlybert.kernels.packed_attention.CPU_BLOCK", 1)
    model, batch = network(shape), batch_of(lengths)
    config, places = model.config, places_of(batch)
    with FlopCounterMode(display=False) as counter:
        total(model(**batch, places=places)).backward()
    counted_config = dataclasses.replace(config, vocab_size=config.padded_vocab_size)
    work = Work.of(places.tokens, places.needed, len(batch["masked_positions"]))
    pooler = 3 * len(lengths) * (2 * config.hidden_size**2 + 2 * config.hidden_size * 2)
    assert counter.get_total_flops() == training_flops(counted_config, work) + pooler


def test_work_adds_up() -> None:
    parts = [Work.of(Packing.of((3, 2)), Packing.of((2, 1)), 4), Work.of(Packing.of((5,)), Packing.of((5,)), 1)]
    assert parts[0] == Work(tokens=5, pairs=13, needed=3, needed_pairs=8, predictions=4, sequences=2)
    assert Work.total(parts) == Work(tokens=10, pairs=38, needed=8, needed_pairs=33, predictions=5, sequences=3)
    assert Work.total([]) == Work()


def test_peak_is_the_best_of_several_products() -> None:
    """Under a clock of which the readings are known; the third product takes least, half a second."""
    readings = iter([0.0, 4.0, 4.0, 6.0, 6.0, 6.5, *range(7, 17)])
    assert measured_peak(torch.device("cpu"), torch.float32, lambda: next(readings)) == 2.0 * 1024**3 / 0.5
