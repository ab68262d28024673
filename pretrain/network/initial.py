"""Initial weights: a pure function of seed, parameter name and full shape, so rewinding needs nothing remembered."""

import torch
from torch import Tensor

from earlybert.core.randomness import derived_seed
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import meta_network


def parameter_shapes(config: NetworkConfig) -> dict[str, torch.Size]:
    """Shape of every parameter by name."""
    return {name: parameter.shape for name, parameter in meta_network(config).named_parameters()}


def initial_tensor(config: NetworkConfig, seed: int, name: str, shape: torch.Size) -> Tensor:
    """fp32 initial value of one parameter: N(0, initializer_range) for weights, 1 for LayerNorms and coefficients."""
    if name.endswith(("LayerNorm.weight", "coefficients")):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(derived_seed(seed, "weights", name, *shape))
    tensor = torch.randn(shape, generator=generator) * config.initializer_range
    if name == "embeddings.word_embeddings.weight":
        tensor[config.vocab_size :] = 0.0
    return tensor


def initial_weights(config: NetworkConfig, seed: int) -> dict[str, Tensor]:
    """fp32 initial values of all parameters of a full (not narrowed) network."""
    return {name: initial_tensor(config, seed, name, shape) for name, shape in parameter_shapes(config).items()}
