"""Translation to and from Hugging Face's BERT and its narrow kin: same network, other names, query, key, value apart.

Shape suffixes: H hidden size, V vocabulary rows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertModel,
    BertPreTrainedModel,
)

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.exported import modeling_earlybert
from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertConfig
from earlybert.pretrain.network.losses.part import LossPart
from earlybert.pretrain.network.losses.registry import LOSS_PARTS, loss_parts
from earlybert.pretrain.network.parameters import facts_of, layer_of, parameter_shapes, split_name

Bert = TypeVar("Bert", bound=BertPreTrainedModel)

# Our name -> Hugging Face's, outside and inside a layer.
OUTSIDE = {
    "embeddings.": "bert.embeddings.",
    **{ours: theirs for part in LOSS_PARTS for ours, theirs in part.bert_names.items()},
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
PROJECTIONS = ("query", "key", "value")
# Hugging Face's BERT by the heads that it has.
BERT_CLASSES: dict[frozenset[str], type[BertPreTrainedModel]] = {
    frozenset({"cls.predictions", "cls.seq_relationship"}): BertForPreTraining,
    frozenset({"cls.predictions"}): BertForMaskedLM,
    frozenset({"cls.seq_relationship"}): BertForNextSentencePrediction,
    frozenset(): BertModel,
}
# Second names of the embedding table and of its bias, with the first.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


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


def _projection_names(name: str) -> list[str]:
    """Hugging Face's names for query, key and value of a fused projection's weight or bias."""
    layer, last = layer_of(name), name.rpartition(".")[2]
    return [f"bert.encoder.layer.{layer}.attention.self.{projection}.{last}" for projection in PROJECTIONS]


def parts_without_bert_head(config: NetworkConfig) -> list[LossPart]:
    """The parts of a network's loss that Hugging Face's BERT has no head for."""
    return [part for part in loss_parts(config.losses) if not part.bert_names]


def bert_class(config: NetworkConfig) -> type[BertPreTrainedModel]:
    """The Hugging Face model with the heads of this network's loss, as far as it has such."""
    names = [theirs for part in loss_parts(config.losses) for theirs in part.bert_names.values()]
    return BERT_CLASSES[frozenset(".".join(name.split(".")[:2]) for name in names if name.startswith("cls."))]


def narrow_class(bert: type[BertPreTrainedModel]) -> type[BertPreTrainedModel]:
    """The class whose layers have widths of their own, with the same heads."""
    narrow: type[BertPreTrainedModel] = getattr(modeling_earlybert, f"Early{bert.__name__}")
    return narrow


def to_bert(config: NetworkConfig, weights: Mapping[str, Tensor]) -> BertPreTrainedModel:
    """A Hugging Face BERT with the weights of a full-width network.

    Left out are the padding rows of the vocabulary, and heads that BERT has not.
    """
    return fill_bert(bert_class(config), config, weights)


def to_earlybert(config: NetworkConfig, weights: Mapping[str, Tensor]) -> BertPreTrainedModel:
    """The same for a network with any widths, as a model that has these widths."""
    return fill_bert(narrow_class(bert_class(config)), config, weights)


def fill_bert(model_class: type[Bert], config: NetworkConfig, weights: Mapping[str, Tensor], **labels: Any) -> Bert:
    """The same for a given class, whose heads must be those of the weights; `labels` are its configuration's."""
    model = _empty_bert(model_class, config, labels)
    left_out = {name for part in parts_without_bert_head(config) for name in part.parameters}
    own = "bert." if model.base_model is model else ""
    state = {}
    for name, tensor in weights.items():
        if name in left_out:
            continue
        facts = facts_of(name)
        if facts.pads_vocabulary:
            tensor = tensor[: config.vocab_size]
        if facts.row_blocks > 1:
            for projection, rows in zip(_projection_names(name), tensor.chunk(facts.row_blocks), strict=True):
                state[projection.removeprefix(own)] = rows.contiguous()
        else:
            state[bert_name(name).removeprefix(own)] = tensor.contiguous()
    missing, unexpected = model.load_state_dict(state, strict=False)
    leftover = [name for name in missing if name not in TIED]
    if leftover or unexpected:
        raise RuntimeError(f"the BERT form does not match: missing {leftover}, unexpected {unexpected}")
    model.tie_weights()
    return model


def _empty_bert(model_class: type[Bert], config: NetworkConfig, labels: Mapping[str, Any]) -> Bert:
    """A model of this shape; its weights mean nothing yet."""
    fields: dict[str, Any] = {field: getattr(config, field) for field in SHARED_FIELDS}
    bert_config: type[BertConfig] = BertConfig
    if issubclass(model_class, modeling_earlybert.Narrow):
        bert_config = EarlyBertConfig
        fields["ticket_sha256"] = config.ticket_sha256
        for kept in ("kept_heads", "kept_neurons"):
            fields[kept] = getattr(config, kept) and [list(units) for units in getattr(config, kept)]
    # Only the next sentence's head has a pooler of its own.
    others = {"add_pooling_layer": False} if issubclass(model_class, BertModel) else {}
    return model_class(bert_config(**fields, tie_word_embeddings=True, **labels), **others)


def bert_network(bert_config: BertConfig) -> NetworkConfig:
    """The shape of Hugging Face's BERT or of a narrow one."""
    kept = {name: getattr(bert_config, name, None) for name in ("kept_heads", "kept_neurons")}
    units: dict[str, Any] = {name: layers and tuple(map(tuple, layers)) for name, layers in kept.items()}
    return NetworkConfig(
        **{field: getattr(bert_config, field) for field in SHARED_FIELDS},
        **units,
        ticket_sha256=getattr(bert_config, "ticket_sha256", None),
    )


def from_bert(bert_config: BertConfig, state: Mapping[str, Tensor]) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Our configuration and fp32 weights of a `state_dict()`, narrow or not, with its pre-training heads."""
    config = dataclasses.replace(
        bert_network(bert_config),
        losses=tuple(part.name for part in LOSS_PARTS if part.bert_names and _has_head(state, part)),
    )
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if facts_of(name).row_blocks > 1:
            tensor = torch.cat([state[projection] for projection in _projection_names(name)])
        else:
            tensor = state[bert_name(name)]
        padded = tensor.new_zeros(shape, dtype=torch.float32)
        padded[: tensor.shape[0]] = tensor
        weights[name] = padded
    return config, weights


def _has_head(state: Mapping[str, Tensor], part: LossPart) -> bool:
    return all(any(name.startswith(theirs) for name in state) for theirs in part.bert_names.values())
