"""What training begins a stage with, and a checkpoint holds. Light to import: nothing here needs PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Tensors by parameter name.
Weights = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class TrainingState:
    """What a stage starts from: fp32 weights, and (unless the optimizer starts afresh) moments and its step count.

    `loss_scale` is the state of fp16's dynamic loss scale, empty in other precisions. `importance` is what a search by
    importance has added up so far, by the name of the coefficients; empty elsewhere.
    """

    weights: Weights
    moments: Mapping[str, Weights] = field(default_factory=dict)
    optimizer_step: int = 0
    loss_scale: Mapping[str, Any] = field(default_factory=dict)
    importance: Weights = field(default_factory=dict)
