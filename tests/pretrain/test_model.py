"""The network against Hugging Face's BERT, and its padded vocabulary."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertPreTrainedModel

from earlybert.kernels.lamb import Lamb
from earlybert.pretrain.network.bert_format import from_bert
from earlybert.pretrain.network.model import PreTrainingNetwork
from tests.conftest import gradient_of
from tests.pretrain.small_models import (
    VOCABULARY,
    build,
    padded_logits,
    random_bert,
    random_inputs,
    random_weights,
    small_config,
)

IGNORED = -100


def matching_model(bert: BertPreTrainedModel, *, searching: bool = False) -> PreTrainingNetwork:
    """Our network with the weights of Hugging Face's; with all coefficients 1 when searching."""
    config, weights = from_bert(bert.config, bert.state_dict())
    model = PreTrainingNetwork(dataclasses.replace(config, searching=searching))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert all(name.endswith("coefficients") for name in missing) and not unexpected
    assert len(missing) == (6 if searching else 0)
    return model.eval()


def labels_for(inputs: dict[str, Tensor]) -> Tensor:
    """[B, S]: the token to predict at every third attended position, elsewhere IGNORED."""
    labels = torch.roll(inputs["input_ids"], 1, dims=0)
    chosen = (torch.arange(labels.shape[1]) % 3 == 0)[None] & inputs["attention_mask"].bool()
    return torch.where(chosen, labels, IGNORED)


@pytest.mark.parametrize("searching", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_those_of_bert_for_pretraining(attention: str, searching: bool) -> None:
    bert, inputs = random_bert(attention=attention), random_inputs()
    with torch.no_grad():
        ours, theirs = padded_logits(matching_model(bert, searching=searching), **inputs), bert(**inputs)
    torch.testing.assert_close(ours.prediction_logits[..., :VOCABULARY], theirs.prediction_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.seq_relationship_logits, theirs.seq_relationship_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("without", [["attention_mask"], ["token_type_ids"], ["attention_mask", "token_type_ids"]])
def test_absent_inputs_default_as_in_bert(without: list[str]) -> None:
    bert = random_bert()
    inputs = {name: value for name, value in random_inputs().items() if name not in without}
    with torch.no_grad():
        ours, theirs = padded_logits(matching_model(bert), **inputs), bert(**inputs)
    torch.testing.assert_close(ours.prediction_logits[..., :VOCABULARY], theirs.prediction_logits, rtol=1e-5, atol=1e-5)


def test_without_next_sentence_it_is_bert_for_masked_lm() -> None:
    bert, inputs = random_bert(next_sentence=False), random_inputs()
    model = matching_model(bert)
    with torch.no_grad():
        ours, theirs = padded_logits(model, **inputs), bert(**inputs)
    assert ours.seq_relationship_logits is None
    assert not any(name.startswith(("pooler", "next_sentence")) for name, _ in model.named_parameters())
    torch.testing.assert_close(ours.prediction_logits[..., :VOCABULARY], theirs.logits, rtol=1e-5, atol=1e-5)


def our_loss(model: PreTrainingNetwork, inputs: dict[str, Tensor], labels: Tensor, next_sentence: Tensor) -> Tensor:
    positions = (labels.flatten() != IGNORED).nonzero().squeeze(1)
    output = padded_logits(model, **inputs, masked_positions=positions)
    masked = F.cross_entropy(output.prediction_logits, labels.flatten()[positions])
    return masked + F.cross_entropy(output.seq_relationship_logits, next_sentence)


@pytest.mark.parametrize("searching", [False, True])
def test_gradients_are_those_of_bert(searching: bool) -> None:
    bert, inputs = random_bert(), random_inputs()
    labels, next_sentence = labels_for(inputs), torch.tensor([0, 1, 1, 0])
    theirs = bert(**inputs, labels=labels, next_sentence_label=next_sentence).loss
    theirs.backward()
    model = matching_model(bert, searching=searching)
    ours = our_loss(model, inputs, labels, next_sentence)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    gradients = {name: gradient_of(parameter) for name, parameter in bert.named_parameters()}
    _, expected = from_bert(bert.config, gradients)
    for name, parameter in model.named_parameters():
        if name.endswith("coefficients"):
            continue
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


def test_key_bias_gradient_is_exactly_zero() -> None:
    """Softmax ignores a key bias; the float64 gradient through Hugging Face's BERT shows that nothing is lost."""
    bert, inputs = random_bert().double(), random_inputs()
    labels, next_sentence = labels_for(inputs), torch.tensor([0, 1, 1, 0])
    bert(**inputs, labels=labels, next_sentence_label=next_sentence).loss.backward()
    model = matching_model(random_bert())
    our_loss(model, inputs, labels, next_sentence).backward()
    for layer in range(3):
        query, key, value = gradient_of(model.get_parameter(f"layers.{layer}.attention.qkv.bias")).chunk(3)
        theirs = {
            part: gradient_of(bert.get_parameter(f"bert.encoder.layer.{layer}.attention.self.{part}.bias"))
            for part in ("query", "key", "value")
        }
        assert torch.count_nonzero(key) == 0
        assert float(theirs["key"].abs().max()) < 1e-15
        torch.testing.assert_close(query.double(), theirs["query"], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(value.double(), theirs["value"], rtol=1e-4, atol=1e-7)
        assert float(query.abs().max()) > 1e-6 and float(value.abs().max()) > 1e-6


def test_masked_positions_pick_rows_of_the_full_logits() -> None:
    config, inputs = small_config(), random_inputs()
    model = build(config, random_weights(config))
    positions = torch.tensor([0, 5, 17, 18, 40, 67])
    with torch.no_grad():
        full, some = padded_logits(model, **inputs), padded_logits(model, **inputs, masked_positions=positions)
    torch.testing.assert_close(
        some.prediction_logits, full.prediction_logits.flatten(0, 1)[positions], rtol=1e-5, atol=1e-5
    )
    assert torch.equal(some.seq_relationship_logits, full.seq_relationship_logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_rows_can_never_be_predicted(dtype: torch.dtype) -> None:
    config, inputs = small_config(), random_inputs()
    assert config.padded_vocab_size == 128
    with torch.no_grad():
        logits = padded_logits(build(config, random_weights(config), dtype), **inputs).prediction_logits
    assert logits.shape[-1] == 128
    assert torch.isneginf(logits[..., VOCABULARY:]).all()
    assert torch.isfinite(logits[..., :VOCABULARY]).all()
    assert int(logits.argmax(-1).max()) < VOCABULARY


def test_padding_rows_get_no_gradient_and_stay_zero_under_lamb() -> None:
    config, inputs = small_config(), random_inputs()
    model = build(config, random_weights(config)).train()
    rows, bias = model.embeddings.word_embeddings.weight, model.get_parameter("masked_token.bias")
    bias.data[VOCABULARY:] = 0.0
    before = rows.detach().clone()
    optimizer = Lamb([{"params": [rows], "weight_decay": 0.01}, {"params": [bias], "weight_decay": 0.0}], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        our_loss(model, inputs, labels_for(inputs), torch.tensor([0, 1, 1, 0])).backward()
        assert rows.grad is not None and bias.grad is not None
        assert torch.count_nonzero(rows.grad[VOCABULARY:]) == 0 and torch.count_nonzero(bias.grad[VOCABULARY:]) == 0
        optimizer.step()
    assert torch.count_nonzero(rows[VOCABULARY:]) == 0 and torch.count_nonzero(bias[VOCABULARY:]) == 0
    assert bool((rows[:VOCABULARY] != before[:VOCABULARY]).all())


def test_vocabulary_that_needs_no_padding_has_none() -> None:
    config = small_config(vocab_size=128)
    assert config.padded_vocab_size == 128
    with torch.no_grad():
        logits = padded_logits(build(config, random_weights(config)), **random_inputs()).prediction_logits
    assert torch.isfinite(logits).all()


def test_decoder_is_the_embedding_table() -> None:
    config, inputs = small_config(), random_inputs()
    model = build(config, random_weights(config))
    tables = [name for name, p in model.named_parameters() if p.shape == (config.padded_vocab_size, 32)]
    assert tables == ["embeddings.word_embeddings.weight"]
    unused = next(token for token in range(VOCABULARY) if not (inputs["input_ids"] == token).any())
    with torch.no_grad():
        before = padded_logits(model, **inputs).prediction_logits
        model.embeddings.word_embeddings.weight[unused] += 1.0
        changed = (padded_logits(model, **inputs).prediction_logits != before).flatten(0, 1).any(0)
    assert changed.nonzero().flatten().tolist() == [unused]


def test_penalties_are_the_sums_of_absolute_coefficients() -> None:
    config = small_config(searching=True)
    weights = random_weights(config)
    weights["layers.1.attention.output.coefficients"][0] = -0.7
    network = build(config, weights)
    network.encode_padded(**random_inputs())
    penalties = network.penalties()
    for penalty, part in ((penalties["head_penalty"], "attention"), (penalties["neuron_penalty"], "feed_forward")):
        coefficients = [weights[f"layers.{layer}.{part}.output.coefficients"].double() for layer in range(3)]
        expected = float(torch.cat(coefficients).abs().sum())
        assert float(penalty.detach()) == pytest.approx(expected, rel=1e-6)


def test_only_a_searching_network_has_coefficients() -> None:
    config = small_config()
    assert not any("coefficients" in name for name in random_weights(config))
    found = {name: w.numel() for name, w in random_weights(small_config(searching=True)).items() if "coeff" in name}
    assert sum(found.values()) == 3 * (4 + 48)
    assert build(config, random_weights(config)).penalties() == {}


def test_coefficients_scale_head_outputs_and_neurons() -> None:
    """Hooks multiply what enters the output projections of a network without coefficients."""
    searching = small_config(searching=True)
    weights, inputs = random_weights(searching), random_inputs()
    plain = build(small_config(), {name: w for name, w in weights.items() if not name.endswith("coefficients")})
    for index, layer in enumerate(plain.layers):
        for part, group in (("attention", 8), ("feed_forward", 1)):
            scale = weights[f"layers.{index}.{part}.output.coefficients"].repeat_interleave(group)
            getattr(layer, part).output.register_forward_pre_hook(lambda _, args, s=scale: (args[0] * s,))
    with torch.no_grad():
        ours, expected = padded_logits(build(searching, weights), **inputs), padded_logits(plain, **inputs)
    torch.testing.assert_close(ours.prediction_logits, expected.prediction_logits, rtol=1e-4, atol=1e-5)
