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
from earlybert.pretrain.network.packed import PackedPlaces


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
    return values


@dataclass
class EarlyBertOutput(ModelOutput):
    """The fields of `NetworkOutput`."""

    prediction_logits: Tensor | None = None
    masked_loss: Tensor | None = None
    masked_correct: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    head_penalty: Tensor | None = None
    neuron_penalty: Tensor | None = None


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
    """Encoder, masked-token head tied to the word embeddings, and (if the config says so) next-sentence head."""

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
        masked_labels: Tensor | None = None,
        places: PackedPlaces | None = None,
    ) -> EarlyBertOutput:
        """As `PreTrainingNetwork.forward`: logits [B, S, V], or of the masked positions [N, V], or the loss there."""
        output = self.network(input_ids, attention_mask, token_type_ids, masked_positions, masked_labels, places)
        return EarlyBertOutput(**output._asdict())


def hugging_face_model(network: PreTrainingNetwork) -> EarlyBertForPreTraining:
    """The same network, with its own weights, as a Hugging Face model."""
    with torch.device("meta"):
        model = EarlyBertForPreTraining(EarlyBertConfig.of(network.config))
    model.load_state_dict(network.state_dict(), assign=True)
    return model


AutoConfig.register("earlybert", EarlyBertConfig)
AutoModelForPreTraining.register(EarlyBertConfig, EarlyBertForPreTraining)
