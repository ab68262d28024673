"""What a pre-trained network is for a task: whether it fits, its configuration, and the weights to start from."""

import dataclasses

import torch
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.finetune.model import TaskModel, TrainedForMaskedTokens
from earlybert.finetune.network import TrainedConfig
from earlybert.finetune.text import Features
from earlybert.pretrain.checkpoint.pretrained import Pretrained
from earlybert.pretrain.network.initial import initial_tensor
from earlybert.pretrain.network.state import Weights


def require_full(pretrained: Pretrained, method: str) -> None:
    """Raises UserError for a method that needs the full network."""
    if pretrained.config.kept_heads is not None:
        raise UserError(
            f"--method is {method}, which cuts a full network, but {pretrained.name} is narrow already; "
            "it must be dense"
        )


def require_length(pretrained: Pretrained, max_length: int) -> None:
    """Raises UserError for sequences that have no positions."""
    positions = pretrained.config.max_position_embeddings
    if max_length > positions:
        raise UserError(
            f"max_length is {max_length}, but the position table of {pretrained.name} has {positions} rows; "
            "it must not be longer"
        )


def require_segments(pretrained: Pretrained, row: Features) -> None:
    """Raises UserError for rows like this one where they have more texts than the network tells apart."""
    kinds, needed = pretrained.config.type_vocab_size, 1 + max(row["token_type_ids"])
    if kinds < needed:
        raise UserError(
            f"{pretrained.name}: its type_vocab_size is {kinds}, but the task has pairs of texts; it must be {needed}"
        )


def task_config(pretrained: Pretrained, head: dict[str, object], dropout: float) -> TrainedConfig:
    """The network's configuration for a task, whose labels are `head`."""
    network = dataclasses.replace(pretrained.config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return TrainedConfig(network, **head)


def starting_weights(
    model_class: TaskModel | type[TrainedForMaskedTokens], config: TrainedConfig, pretrained: Weights, seed: int
) -> dict[str, Tensor]:
    """Pre-trained values, and for the rest (task head, coefficients) initial ones.

    Those are a pure function of (seed, name, shape), so EarlyBERT's search and its training have the same task head.
    """
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in model_class(config).named_parameters()}
    return {
        name: pretrained[name].clone() if name in pretrained else initial_tensor(config.network, seed, name, shape)
        for name, shape in shapes.items()
    }
