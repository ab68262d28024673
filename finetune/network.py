"""The network of pre-training in the form that the Hugging Face Trainer takes."""

import copy
from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import Encoder


class TrainedConfig(PreTrainedConfig):
    """A `NetworkConfig` with Hugging Face's fields for the labels of a task."""

    model_type = "earlybert-training"

    def __init__(self, network: NetworkConfig | None = None, **labels: Any) -> None:
        self.shape = asdict(network or NetworkConfig())
        super().__init__(**labels)

    @property
    def network(self) -> NetworkConfig:
        """The network's shape, which is all that pre-training knows of."""
        return NetworkConfig(**self.shape)

    def with_network(self, network: NetworkConfig) -> "TrainedConfig":
        """The same with another network."""
        changed = copy.deepcopy(self)
        changed.shape = asdict(network)
        return changed


class TrainedModel(PreTrainedModel):
    """A plain network, whose modules are this model's own: its tensors have the same names here as there.

    `network` computes; it is not a submodule itself, or each name would be there twice.
    """

    config_class = TrainedConfig
    base_model_prefix = ""
    config: TrainedConfig
    network: Encoder

    def __init__(self, config: TrainedConfig, network: Encoder) -> None:
        super().__init__(config)
        for name, module in network.named_children():
            self.add_module(name, module)
        object.__setattr__(self, "network", network)

    def get_input_embeddings(self) -> nn.Module:
        return self.network.embeddings.word_embeddings
