"""The network on packed batches against padded ones and Hugging Face's BERT: losses and every gradient, in float64."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from earlybert.pretrain.cost.hardware import measured_peak
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.bert_format import from_bert, to_bert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.network.work import Work, training_flops
from earlybert.pretrain.ticket.ticket import narrow_config
from tests.pretrain.small_models import (
    batch_of,
    build,
    gradients_of_step,
    make_ticket,
    padded_labels,
    padded_logits,
    random_weights,
    small_config,
    unequal_ticket,
)

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


def everything(batch: Batch) -> Batch:
    """A last layer that computes all tokens."""
    return dataclasses.replace(
        batch,
        needed=batch.tokens,
        needed_rows_M=torch.arange(batch.tokens.tokens),
        predicted_rows_N=batch.needed_rows_M[batch.predicted_rows_N],
        first_rows_B=batch.needed_rows_M[batch.first_rows_B],
    )


def packed(model: PreTrainingNetwork, batch: Batch) -> list[Tensor]:
    """Losses of both parts."""
    return [score.loss for score in model(batch).scores.values()]


def padded(model: PreTrainingNetwork, batch: Batch) -> list[Tensor]:
    """The same by PyTorch's cross-entropy on the logits of a padded batch."""
    output, labels = padded_logits(model, **batch.padded(0)), padded_labels(batch)
    assert output.prediction_logits is not None and output.seq_relationship_logits is not None
    masked = F.cross_entropy(output.prediction_logits.flatten(0, 1), labels["labels"].flatten(), reduction="sum")
    return [masked, F.cross_entropy(output.seq_relationship_logits, labels["next_sentence_label"], reduction="sum")]


def results(
    losses: Callable[[PreTrainingNetwork, Batch], list[Tensor]], model: PreTrainingNetwork, batch: Batch
) -> list[Tensor]:
    """Losses, and the gradients of all parameters of a sum that every loss and penalty has a part in."""
    model.zero_grad()
    found = losses(model, batch)
    total = torch.stack([found[0], 2 * found[1]]).sum()
    for weight, penalty in zip((0.1, 0.2), model.penalties().values(), strict=False):
        total = total + weight * penalty
    total.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return [*found, *gradients]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", ["dense", "unequal", "least", "searching"])
def test_packed_is_padded(shape: str, lengths: tuple[int, ...]) -> None:
    model, batch = network(shape), batch_of(lengths)
    torch.testing.assert_close(results(packed, model, batch), results(padded, model, batch), rtol=1e-9, atol=1e-11)


def test_a_step_has_the_loss_and_the_gradient_of_hugging_face_bert() -> None:
    """Micro-batches of unequal sizes and a stand-in, against all sequences padded in one batch.

    BERT's loss is the mean over the masked tokens plus the mean over the sequences.
    """
    every, stand_in = batch_of((17, 9, 1, 12, 5, 3)), dataclasses.replace(batch_of((4, 4), 1), weight=0.0)
    model = network("dense")
    bert = to_bert(model.config, random_weights(model.config)).double().eval()
    bert(**every.padded(0), **padded_labels(every)).loss.backward()
    _, expected = from_bert(bert.config, {name: weight.grad for name, weight in bert.named_parameters()})
    found = gradients_of_step(model, [*split(every, (2, 3, 1)), stand_in])
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name].double(), rtol=1e-6, atol=1e-9, msg=name)


def split(batch: Batch, sizes: tuple[int, ...]) -> list[Batch]:
    """The same sequences in several batches of so many each."""
    rows = torch.arange(batch.tokens.tokens).split(batch.tokens.lengths)
    predicted_T = batch.needed_rows_M[batch.predicted_rows_N]
    parts, first = [], 0
    for size in sizes:
        own_T = torch.cat(rows[first : first + size])
        inside = torch.isin(predicted_T, own_T)
        lengths = batch.tokens.lengths[first : first + size]
        predicted, labels = predicted_T[inside] - own_T[0], batch.masked_labels_N[inside]
        segments = batch.segment_labels_B[first : first + size]
        tensors = batch.input_ids_T[own_T], batch.token_type_ids_T[own_T], predicted, labels, segments
        parts.append(Batch.of(lengths, *tensors))
        first += size
    return parts


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", ["dense", "least"])
def test_needed_positions_of_the_last_layer_are_those_of_the_full_layer(shape: str, lengths: tuple[int, ...]) -> None:
    model, batch = network(shape), batch_of(lengths)
    assert batch.needed.tokens < batch.tokens.tokens or max(lengths) == 1
    subset, full = (results(packed, model, each) for each in (batch, everything(batch)))
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
    with torch.no_grad():
        torch.testing.assert_close(packed(narrow, batch), packed(masked_wide, batch), rtol=1e-9, atol=1e-11)


def test_positions_are_those_of_the_batch() -> None:
    """A sequence with a hole: Hugging Face's BERT is told the same by its mask."""
    model, batch = network("dense"), batch_of((12,))
    bert = to_bert(model.config, random_weights(model.config)).double().eval()
    there = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
    holed = Batch.of(
        [10],
        batch.input_ids_T[there],
        batch.token_type_ids_T[there],
        torch.tensor([1, 9]),
        torch.tensor([7, 8]),
        torch.tensor([1]),
    )
    holed = dataclasses.replace(holed, position_ids_T=there)
    inputs = batch.padded(0)
    inputs["attention_mask"][0, 3:5] = 0
    with torch.no_grad():
        output = bert(**inputs)
        log_probabilities = output.prediction_logits[0, [1, 11]].log_softmax(-1)
        expected = [-log_probabilities[[0, 1], [7, 8]].sum(), -output.seq_relationship_logits.log_softmax(-1)[0, 1]]
        torch.testing.assert_close(packed(model, holed), expected, rtol=1e-9, atol=0)


def test_rows_of_a_small_batch() -> None:
    """Two sequences of 3 and 2 tokens; predicted are the last of the first and the first of the second."""
    ids = torch.arange(5)
    batch = Batch.of((3, 2), ids, ids, torch.tensor([2, 3]), torch.tensor([8, 9]), torch.tensor([0, 1]))
    assert (batch.tokens.lengths, batch.needed.lengths) == ((3, 2), (2, 1))
    assert batch.position_ids_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.needed_rows_M.tolist() == [0, 2, 3]
    assert (batch.predicted_rows_N.tolist(), batch.first_rows_B.tolist()) == ([1, 2], [0, 2])
    padded_batch = {name: tensor.tolist() for name, tensor in batch.padded(7).items()}
    assert padded_batch == {
        "input_ids": [[0, 1, 2], [3, 4, 7]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "token_type_ids": [[0, 1, 2], [3, 4, 0]],
    }


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("shape", ["dense", "unequal"])
def test_operations_are_those_that_pytorch_counts(
    shape: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the heads of both losses. One block a sequence: nothing padded."""
    monkeypatch.setattr("earlybert.kernels.packed_attention.CPU_BLOCK", 1)
    model, batch = network(shape), batch_of(lengths)
    with FlopCounterMode(display=False) as counter:
        torch.stack(packed(model, batch)).sum().backward()
    # What pads the vocabulary is multiplied too.
    computed = dataclasses.replace(model.config, vocab_size=model.config.padded_vocab_size)
    assert counter.get_total_flops() == training_flops(computed, Work.of(batch))


def test_work_adds_up() -> None:
    ids = torch.arange(5)
    first = Batch.of((3, 2), ids, ids, torch.tensor([0, 2]), ids[:2], ids[:2])
    second = Batch.of((5,), ids, ids, torch.tensor([1, 2, 3, 4]), ids[:4], ids[:1])
    parts = [Work.of(first), Work.of(second)]
    assert parts[0] == Work(tokens=5, pairs=13, needed=3, needed_pairs=8, predictions=2, sequences=2)
    assert Work.total(parts) == Work(tokens=10, pairs=38, needed=8, needed_pairs=33, predictions=6, sequences=3)
    assert Work.total([]) == Work()


def test_peak_is_the_best_of_several_products() -> None:
    """Under a clock of which the readings are known; the third product takes least, an eighth of a second."""
    readings = iter([0.0, 0.25, 0.25, 0.75, 0.75, 0.875, *(1 + number / 8 for number in range(10))])
    assert measured_peak(torch.device("cpu"), torch.float32, lambda: next(readings)) == 2.0 * 1024**3 / 0.125
    assert len([*readings]) == 0


def test_slow_products_are_few() -> None:
    """After two seconds of them there is no third reading to be had."""
    readings = iter([0.0, 1.5, 1.5, 2.25])
    assert measured_peak(torch.device("cpu"), torch.float32, lambda: next(readings)) == 2.0 * 1024**3 / 0.75
