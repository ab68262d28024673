"""Initial weights: a pure function of seed, parameter name and full shape, so rewinding needs nothing remembered."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from earlybert.core.randomness import derived_seed
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.parameters import facts_of, parameter_shapes
from earlybert.pretrain.network.state import Weights

# What a run begins with: the initial values of all parameters of a full network of this shape.
InitialWeights = Callable[[NetworkConfig], dict[str, Tensor]]


def initial_tensor(config: NetworkConfig, seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """fp32 initial value of one parameter: N(0, initializer_range) for weights, 1 for LayerNorms and coefficients."""
    facts = facts_of(name)
    if facts.initially != "normal":
        return torch.ones(*shape) if facts.initially == "ones" else torch.zeros(*shape)
    generator = torch.Generator().manual_seed(derived_seed(seed, "weights", name, *shape))
    tensor = torch.randn(*shape, generator=generator) * config.initializer_range
    if facts.pads_vocabulary:
        tensor[config.vocab_size :] = 0.0
    return tensor


def initial_weights(config: NetworkConfig, seed: int, given: Weights | None = None) -> dict[str, Tensor]:
    """fp32 initial values of all parameters of a full (not narrowed) network: those given, fresh ones for the rest."""
    given = given or {}
    return {
        name: given[name].clone() if name in given else initial_tensor(config, seed, name, shape)
        for name, shape in parameter_shapes(config).items()
    }
