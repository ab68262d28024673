"""The networks as Hugging Face models, saved and loaded like any other. Importing this registers the Auto classes.

Shape suffixes: B sequences, S positions, V vocabulary rows, N predicted positions.
"""

import copy
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import Encoder, PreTrainingNetwork


@strict
class EarlyBertConfig(PreTrainedConfig):
    """The form of `NetworkConfig` in config.json, with Hugging Face's own fields (labels of a task and so on)."""

    model_type = "earlybert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    losses: list[str] | None = None
    next_sentence: bool = True
    searching: bool = False
    kept_heads: list[list[int]] | None = None
    kept_neurons: list[list[int]] | None = None
    ticket_sha256: str | None = None

    @property
    def network(self) -> NetworkConfig:
        """The network's shape, which is all that pre-training knows of."""
        values = {field.name: getattr(self, field.name) for field in fields(NetworkConfig)}
        for name in ("kept_heads", "kept_neurons"):
            values[name] = values[name] and tuple(map(tuple, values[name]))
        # Exports of the first version say only whether they have the second of two parts.
        values["losses"] = tuple(self.losses or (["masked", "next_sentence"] if self.next_sentence else ["masked"]))
        return NetworkConfig(**values)

    @classmethod
    def of(cls, network: NetworkConfig, **others: Any) -> "EarlyBertConfig":
        """For this network; `others` are Hugging Face's own fields."""
        return cls(**_json_values(network), **others)

    def with_network(self, network: NetworkConfig) -> "EarlyBertConfig":
        """The same with another network."""
        changed = copy.deepcopy(self)
        for name, value in _json_values(network).items():
            setattr(changed, name, value)
        return changed


def _json_values(network: NetworkConfig) -> dict[str, Any]:
    values = asdict(network)
    for name in ("kept_heads", "kept_neurons"):
        values[name] = values[name] and list(map(list, values[name]))
    return values | {"losses": list(network.losses), "next_sentence": "next_sentence" in network.losses}


@dataclass
class EarlyBertOutput(ModelOutput):
    """Logits by the names that Hugging Face's BERT has for them.

    `prediction_logits`: [N, V] for the positions asked for, else [B, S, V]; rows of the padded vocabulary are -inf.
    `seq_relationship_logits`: [B, 2], is-next first; None without next-sentence prediction.
    `other_logits`: of every part of the loss that BERT has not, by its name.
    """

    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    other_logits: dict[str, Tensor] | None = None


class EarlyBertModel(PreTrainedModel):
    """A plain network, whose modules are this model's own: its tensors have the same names here as there.

    `network` computes; it is not a submodule itself, or each name would be there twice.
    """

    config_class = EarlyBertConfig
    base_model_prefix = ""
    config: EarlyBertConfig
    network: Encoder

    def __init__(self, config: EarlyBertConfig, network: Encoder) -> None:
        super().__init__(config)
        for name, module in network.named_children():
            self.add_module(name, module)
        object.__setattr__(self, "network", network)

    def get_input_embeddings(self) -> nn.Module:
        return self.network.embeddings.word_embeddings


class EarlyBertForPreTraining(EarlyBertModel):
    """Encoder and the heads of pre-training."""

    network: PreTrainingNetwork

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__(config, PreTrainingNetwork(config.network))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
    ) -> EarlyBertOutput:
        """`padded_output` of its network."""
        return padded_output(self.network, input_ids, attention_mask, token_type_ids, masked_positions)


def padded_output(
    network: PreTrainingNetwork,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    masked_positions: Tensor | None = None,
) -> EarlyBertOutput:
    """Logits of a padded batch; with `masked_positions`, [N] indices into its B*S positions, tokens only there."""
    hidden_BSH = network.encode_padded(input_ids, attention_mask, token_type_ids)
    predicted_xH = hidden_BSH if masked_positions is None else hidden_BSH.flatten(0, 1)[masked_positions]
    rows = {"predictions": predicted_xH, "sequences": hidden_BSH[:, 0]}
    logits = {part: part.logits(network, rows[part.counted]) for part in network.parts}
    others = {part.name: scores for part, scores in logits.items() if not part.bert_output}
    named = {part.bert_output: scores for part, scores in logits.items() if part.bert_output}
    return EarlyBertOutput(**named, other_logits=others or None)


def hugging_face_model(network: PreTrainingNetwork) -> EarlyBertForPreTraining:
    """The same network, with its own weights, as a Hugging Face model."""
    with torch.device("meta"):
        model = EarlyBertForPreTraining(EarlyBertConfig.of(network.config))
    model.load_state_dict(network.state_dict(), assign=True)
    return model


AutoConfig.register("earlybert", EarlyBertConfig)
AutoModelForPreTraining.register(EarlyBertConfig, EarlyBertForPreTraining)
