"""Translation to and from Hugging Face's BERT: same network, other names, query, key and value apart.

Shape suffixes: H hidden size, V vocabulary rows.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertPreTrainedModel

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.parameters import facts_of, layer_of, parameter_shapes, split_name

Bert = TypeVar("Bert", bound=BertPreTrainedModel)

# Our name -> Hugging Face's, outside and inside a layer.
OUTSIDE = {
    "embeddings.": "bert.embeddings.",
    "masked_token.dense.": "cls.predictions.transform.dense.",
    "masked_token.LayerNorm.": "cls.predictions.transform.LayerNorm.",
    "masked_token.bias": "cls.predictions.bias",
    "pooler.": "bert.pooler.dense.",
    "next_sentence.": "cls.seq_relationship.",
    "classifier.": "classifier.",
    "qa_outputs.": "qa_outputs.",
}
INSIDE = {
    "attention.output.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
    "feed_forward.intermediate.": "intermediate.dense.",
    "feed_forward.output.": "output.dense.",
    "feed_forward.LayerNorm.": "output.LayerNorm.",
}
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)
# The blocks of rows of what we store as one.
PARTS = ("query", "key", "value")


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def bert_name(name: str) -> str:
    """Hugging Face's name for one of our parameters other than the fused projection."""
    layer, row = split_name(name)
    if layer < 0:
        return _renamed(name, OUTSIDE)
    return f"bert.encoder.layer.{layer}." + _renamed(row, INSIDE)


def _part_names(name: str) -> list[str]:
    """Hugging Face's names for query, key and value of a fused projection's weight or bias."""
    layer, last = layer_of(name), name.rpartition(".")[2]
    return [f"bert.encoder.layer.{layer}.attention.self.{part}.{last}" for part in PARTS]


def to_bert(config: NetworkConfig, weights: Mapping[str, Tensor]) -> BertForPreTraining | BertForMaskedLM:
    """A Hugging Face model with the weights of a full-width network; vocabulary padding rows are left out."""
    if config.next_sentence:
        return fill_bert(BertForPreTraining, config, weights)
    return fill_bert(BertForMaskedLM, config, weights)


def fill_bert(model_class: type[Bert], config: NetworkConfig, weights: Mapping[str, Tensor], **labels: Any) -> Bert:
    """The same for a given class, whose heads must be those of the weights; `labels` are its configuration's."""
    bert_config = BertConfig(
        **{field: getattr(config, field) for field in SHARED_FIELDS}, tie_word_embeddings=True, **labels
    )
    state = {}
    for name, tensor in weights.items():
        facts = facts_of(name)
        if facts.pads_vocabulary:
            tensor = tensor[: config.vocab_size]
        if facts.row_blocks > 1:
            for part_name, rows in zip(_part_names(name), tensor.chunk(facts.row_blocks), strict=True):
                state[part_name] = rows.contiguous()
        else:
            state[bert_name(name)] = tensor.contiguous()
    model = model_class(bert_config)
    # The decoder is the embedding table under a second name; everything else must be there.
    missing, unexpected = model.load_state_dict(state, strict=False)
    leftover = [
        name for name in missing if name not in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    ]
    if leftover or unexpected:
        raise RuntimeError(f"the BERT form does not match: missing {leftover}, unexpected {unexpected}")
    model.tie_weights()
    return model


def from_bert(bert_config: BertConfig, state: Mapping[str, Tensor]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Our configuration and fp32 weights of a Hugging Face BERT's `state_dict()` (with its pre-training heads)."""
    config = NetworkConfig(
        **{field: getattr(bert_config, field) for field in SHARED_FIELDS},
        next_sentence="cls.seq_relationship.weight" in state,
    )
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if facts_of(name).row_blocks > 1:
            tensor = torch.cat([state[part_name] for part_name in _part_names(name)])
        else:
            tensor = state[bert_name(name)]
        padded = tensor.new_zeros(shape, dtype=torch.float32)
        padded[: tensor.shape[0]] = tensor
        weights[name] = padded
    return config, weights
