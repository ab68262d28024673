"""Translation to and from Hugging Face's BERT: same network, other names, query, key and value apart.

Shape suffixes: H hidden size, V vocabulary rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from earlybert.pretrain.initial import parameter_shapes
from earlybert.pretrain.model import EarlyBertConfig

# Our name -> Hugging Face's, outside and inside a layer.
OUTSIDE = {
    "embeddings.": "bert.embeddings.",
    "masked_token.dense.": "cls.predictions.transform.dense.",
    "masked_token.LayerNorm.": "cls.predictions.transform.LayerNorm.",
    "masked_token.bias": "cls.predictions.bias",
    "pooler.": "bert.pooler.dense.",
    "next_sentence.": "cls.seq_relationship.",
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
VOCABULARY_TENSORS = ("embeddings.word_embeddings.weight", "masked_token.bias")


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def bert_name(name: str) -> str:
    """Hugging Face's name for one of our parameters other than the fused projection."""
    if not name.startswith("layers."):
        return _renamed(name, OUTSIDE)
    _, layer, rest = name.split(".", 2)
    return f"bert.encoder.layer.{layer}." + _renamed(rest, INSIDE)


def to_bert(config: EarlyBertConfig, weights: Mapping[str, Tensor]) -> BertForPreTraining | BertForMaskedLM:
    """A Hugging Face model with the weights of a full-width network; vocabulary padding rows are left out."""
    bert_config = BertConfig(**{field: getattr(config, field) for field in SHARED_FIELDS}, tie_word_embeddings=True)
    state = {}
    for name, tensor in weights.items():
        if name in VOCABULARY_TENSORS:
            tensor = tensor[: config.vocab_size]
        if ".attention.qkv." in name:
            layer, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"bert.encoder.layer.{layer}.attention.self.{part}.{kind}"] = rows.contiguous()
        else:
            state[bert_name(name)] = tensor.contiguous()
    model = (BertForPreTraining if config.next_sentence else BertForMaskedLM)(bert_config)
    # The decoder is the embedding table under a second name; everything else must be there.
    missing, unexpected = model.load_state_dict(state, strict=False)
    leftover = [
        name for name in missing if name not in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    ]
    if leftover or unexpected:
        raise RuntimeError(f"the BERT form does not match: missing {leftover}, unexpected {unexpected}")
    model.tie_weights()
    return model


def from_bert(bert_config: BertConfig, state: Mapping[str, Tensor]) -> tuple[EarlyBertConfig, dict[str, Tensor]]:
    """Our configuration and fp32 weights of a Hugging Face BERT's `state_dict()` (with its pre-training heads)."""
    config = EarlyBertConfig(
        **{field: getattr(bert_config, field) for field in SHARED_FIELDS},
        next_sentence="cls.seq_relationship.weight" in state,
    )
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if ".attention.qkv." in name:
            layer, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            prefix = f"bert.encoder.layer.{layer}.attention.self."
            tensor = torch.cat([state[f"{prefix}{part}.{kind}"] for part in ("query", "key", "value")])
        else:
            tensor = state[bert_name(name)]
        padded = tensor.new_zeros(shape, dtype=torch.float32)
        padded[: tensor.shape[0]] = tensor
        weights[name] = padded
    return config, weights
