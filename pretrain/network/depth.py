"""Networks of other depths, and which layer of a grown network is a copy of which."""

import dataclasses
from typing import Literal

from earlybert.pretrain.network.config import NetworkConfig

Copy = Literal["stacked", "interleaved", "identity"]


def at_depth(config: NetworkConfig, layers: int) -> NetworkConfig:
    """The same full network with another number of layers."""
    return dataclasses.replace(config, num_hidden_layers=layers)


def source_layers(layers: int, target: int, copy: Copy) -> list[int]:
    """For each of `target` layers the one of `layers` that it is a copy of, or takes its widths from ("identity")."""
    if copy == "interleaved":
        return [layer // (target // layers) for layer in range(target)]
    return [layer % layers for layer in range(target)]
