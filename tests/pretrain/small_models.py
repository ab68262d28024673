"""Small networks with every parameter random (biases and LayerNorms too), and the same in Hugging Face's BERT."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import NetworkOutput, PreTrainingNetwork
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import SearchConfig
from earlybert.pretrain.ticket.ticket import Ticket, TicketRule, TicketSource, full_shape
from earlybert.pretrain.train.step import forward_and_backward

VOCABULARY = 101
NEVER_MASKED = 4


def small_config(**changes: object) -> NetworkConfig:
    """Three layers of 4 heads and 48 neurons, 101 vocabulary entries (so 27 padding rows), no dropout."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return NetworkConfig(**(fields | changes))


def random_weights(config: NetworkConfig, seed: int = 0) -> dict[str, Tensor]:
    """Large enough that every unit matters; LayerNorm weights and coefficients around 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = 0.2 * torch.randn(shape, generator=generator)
        weights[name] = 1 + values if name.endswith(("LayerNorm.weight", "coefficients")) else values
    weights["embeddings.word_embeddings.weight"][config.vocab_size :] = 0.0
    return weights


def build(config: NetworkConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> PreTrainingNetwork:
    model = PreTrainingNetwork(config).to(dtype)
    model.load_state_dict(weights)
    return model.eval()


def padded_logits(network: PreTrainingNetwork, **inputs: Tensor) -> Any:
    """By the names that Hugging Face's BERT has for them; without a type: a test knows which of them are there."""
    logits = network.padded_logits(**inputs)
    return BertForPreTrainingOutput(
        prediction_logits=logits.get("masked"), seq_relationship_logits=logits.get("next_sentence")
    )


class PlainEngine:
    """Autograd in the place of DeepSpeed: a step's mean gradient over its micro-batches stays in the parameters."""

    device = torch.device("cpu")

    def __init__(self, model: PreTrainingNetwork, micro_batches: int) -> None:
        self.model, self.config, self.micro_batches = model, model.config, micro_batches

    def forward(self, batch: Batch) -> NetworkOutput:
        output: NetworkOutput = self.model(batch)
        return output

    def backward_and_step(self, loss: Tensor) -> None:
        (loss / self.micro_batches).backward()


def gradients_of_step(
    model: PreTrainingNetwork, batches: list[Batch], search: SearchConfig | None = None, work: Work | None = None
) -> dict[str, Tensor]:
    """What the training loop's step leaves in every parameter that has a gradient.

    The batches are of all ranks, unless `work` says what the global batch is of which they are a rank's.
    """
    work = work or Work.total(Work.of(batch) for batch in batches if batch.weight)
    model.zero_grad()
    forward_and_backward(PlainEngine(model, len(batches)), batches, work, range(len(batches)), search)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def batch_of(lengths: Sequence[int], seed: int = 0) -> Batch:
    """Random sequences of two segments; every third token is predicted, and in each sequence the last."""
    generator = torch.Generator().manual_seed(100 * seed + len(lengths))
    places = [torch.arange(length) for length in lengths]
    predicted = [(place % 3 == 2) | (place == len(place) - 1) for place in places]
    predicted_T = torch.cat(predicted).nonzero().flatten()
    return Batch.of(
        lengths,
        input_ids_T=torch.randint(NEVER_MASKED, VOCABULARY, (sum(lengths),), generator=generator),
        token_type_ids_T=torch.cat([(place >= len(place) // 2).long() for place in places]),
        predicted_T=predicted_T,
        masked_labels_N=torch.randint(NEVER_MASKED, VOCABULARY, predicted_T.shape, generator=generator),
        segment_labels_B=torch.randint(2, (len(lengths),), generator=generator),
    )


def padded_labels(batch: Batch) -> dict[str, Tensor]:
    """A batch's labels as Hugging Face's `BertForPreTraining` takes them: -100 where there is nothing to predict."""
    labels_T = torch.full_like(batch.input_ids_T, -100)
    labels_T[batch.needed_rows_M[batch.predicted_rows_N]] = batch.masked_labels_N
    rows = [*labels_T.split(batch.tokens.lengths)]
    labels_BS = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    return {"labels": labels_BS, "next_sentence_label": batch.segment_labels_B}


def random_inputs(seed: int = 0, batch: int = 4, length: int = 17) -> dict[str, Tensor]:
    """Sequences of different lengths with two segments."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    ends[0] = length
    position = torch.arange(length)[None]
    return {
        "input_ids": torch.randint(NEVER_MASKED, VOCABULARY, (batch, length), generator=generator),
        "attention_mask": (position < ends).long(),
        "token_type_ids": ((position >= ends // 2) & (position < ends)).long(),
    }


def random_bert(*, next_sentence: bool = True, attention: str = "eager") -> BertForPreTraining | BertForMaskedLM:
    """Hugging Face's BERT of `small_config()`'s shape, every parameter random."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = (BertForPreTraining if next_sentence else BertForMaskedLM)(config).eval()
    model.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if name.endswith("LayerNorm.weight") else noise)
    return model


def make_ticket(config: NetworkConfig, heads: list[list[int]], neurons: list[list[int]]) -> Ticket:
    return Ticket(
        model=full_shape(config),
        heads=tuple(map(tuple, heads)),
        neurons=tuple(map(tuple, neurons)),
        rule=TicketRule(width_multiple=1),
        source=TicketSource(kind="random", seed=0),
    )


def unequal_ticket(config: NetworkConfig) -> Ticket:
    """Three, one and all four heads; 5, 47 and 20 neurons."""
    return make_ticket(
        config, [[0, 2, 3], [1], [0, 1, 2, 3]], [[0, 3, 17, 31, 47], [*range(1, 48)], [*range(0, 40, 2)]]
    )
