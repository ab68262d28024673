"""Pure functions on weights: cut, widen, bake coefficients in, stack.

Weights are plain mappings from parameter name to tensor; moments have the same names and shapes and are cut alike.

Shape suffixes: H hidden size, A heads, D head size, F neurons, 3 = query, key, value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from earlybert.kernels.fold import fold_coefficients
from earlybert.pretrain.network.config import NetworkConfig, dense_config
from earlybert.pretrain.network.depth import Copy, source_layers
from earlybert.pretrain.network.parameters import (
    LAST_NORM,
    SUBLAYER_OUTPUTS,
    ParameterFacts,
    depth_of,
    facts_of,
    is_coefficient,
    layer_of,
    split_name,
)
from earlybert.pretrain.network.state import Weights

# Below this a coefficient says nothing about its unit's moments any more: they start from zero instead.
SMALLEST_COEFFICIENT = 1e-3


class KeptUnits(Protocol):
    """What stays in each layer, as a ticket or a narrow network's configuration says."""

    @property
    def heads(self) -> Sequence[Sequence[int]]: ...
    @property
    def neurons(self) -> Sequence[Sequence[int]]: ...


def _rows_of(facts: ParameterFacts, axis: int, kept: Sequence[int], config: NetworkConfig) -> Tensor:
    """Indices, along an axis of the full parameter, of everything that belongs to the kept units."""
    index = torch.tensor(kept)
    if facts.axes[axis] == "head_rows":
        index = (index[:, None] * config.head_size + torch.arange(config.head_size)).flatten()
    if facts.row_blocks == 1:
        return index
    block = facts.shape(config, layer=0)[axis] // facts.row_blocks
    return (torch.arange(facts.row_blocks)[:, None] * block + index).flatten()


def _for_each_unit_tensor(
    weights: Weights,
    kept_units: KeptUnits,
    change: Callable[[str, Tensor, ParameterFacts, int, Sequence[int]], Tensor],
) -> dict[str, Tensor]:
    """Changes every tensor that holds units, given its name, their axis, and those that its layer keeps."""
    result = {}
    for name, tensor in weights.items():
        facts = facts_of(name)
        if facts.unit is not None and facts.unit_axis is not None:
            tensor = change(name, tensor, facts, facts.unit_axis, getattr(kept_units, facts.unit)[layer_of(name)])
        result[name] = tensor
    return result


def narrow_weights(config: NetworkConfig, weights: Weights, kept_units: KeptUnits) -> dict[str, Tensor]:
    """Slices a full network's tensors (weights or moments) down to the kept units; coefficients are left out.

    Removed units are dropped without compensation (`prune_heads` semantics: rows of query, key and value with their
    biases, columns of the output projection; the output biases stay whole).
    """

    def cut(name: str, tensor: Tensor, facts: ParameterFacts, axis: int, kept: Sequence[int]) -> Tensor:
        return tensor.index_select(axis, _rows_of(facts, axis, kept, config))

    return _for_each_unit_tensor(_without_coefficients(weights), kept_units, cut)


def widen_weights(
    config: NetworkConfig, weights: Weights, kept_units: KeptUnits, new: Weights | None = None
) -> dict[str, Tensor]:
    """The inverse of narrowing: every unit back in its place in the full network, zeros where one was cut.

    `config` is the full network's. A unit whose output columns are zero adds nothing, so the function stays the same.
    Where there are tensors of the full network in `new`, the cut units are those of there.
    """

    def pad(name: str, tensor: Tensor, facts: ParameterFacts, axis: int, kept: Sequence[int]) -> Tensor:
        full = new[name].clone() if new else tensor.new_zeros(facts.shape(config, layer=0))
        return full.index_copy_(axis, _rows_of(facts, axis, kept, config), tensor)

    return _for_each_unit_tensor(weights, kept_units, pad)


def silent_units(weights: Weights) -> dict[str, Tensor]:
    """A full network's weights with zeros where heads and neurons lead out: no unit adds anything, all can learn."""
    return {
        name: torch.zeros_like(tensor) if facts_of(name).unit_axis == 1 else tensor for name, tensor in weights.items()
    }


def widen_network(
    before: NetworkConfig, after: NetworkConfig, weights: Weights, new: Weights | None = None
) -> dict[str, Tensor]:
    """Tensors (weights or moments) of a narrow network as those of a wider one, which holds its units and more.

    Every unit keeps its values. The others are those of the full network's tensors in `new`, zero without them.
    """
    dense, kept = dense_config(before), before.kept_units
    full = dict(weights) if kept is None else widen_weights(dense, weights, kept, new)
    return full if after.kept_units is None else narrow_weights(dense, full, after.kept_units)


def _without_coefficients(weights: Weights) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not is_coefficient(name)}


def bake_coefficients(weights: Weights, moments: Mapping[str, Weights]) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Multiplies the coefficients into the weights they act on, which then compute the same function without them.

    With W' = c W the gradient of W' is that of W divided by c: `exp_avg` is divided by c and `exp_avg_sq` by c squared.
    Coefficients and their moments are left out of the result.
    """
    baked = _without_coefficients(weights)
    baked_moments = {moment: _without_coefficients(tensors) for moment, tensors in moments.items()}
    for name in filter(is_coefficient, weights):
        coefficient_C = weights[name]
        target = name.rpartition(".")[0] + ".weight"
        baked[target] = fold_coefficients(weights[target], coefficient_C)
        alive_C = coefficient_C.abs() >= SMALLEST_COEFFICIENT
        inverse_C = torch.where(alive_C, coefficient_C, torch.ones_like(coefficient_C)).reciprocal() * alive_C
        for moment, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            if target in baked_moments.get(moment, {}):
                baked_moments[moment][target] = fold_coefficients(moments[moment][target], inverse_C**power)
    return baked, baked_moments


def stack_weights(weights: Weights, fresh: Weights, order: Copy) -> dict[str, Tensor]:
    """A deeper network's tensors (weights or moments): every layer a copy of one of `weights`, the rest carried over.

    StackingBERT's growth (Gong et al. 2019, algorithm 1) with "stacked": layer i also becomes layer i + L. `fresh` has
    all names of the deeper network; what is no copy (the new layers of "identity", the coefficients of a search that
    begins) is taken from there.
    """
    layers, target = depth_of(weights), depth_of(fresh)
    return {name: weights.get(_copied_from(name, layers, target, order), tensor) for name, tensor in fresh.items()}


def _copied_from(name: str, layers: int, target: int, order: Copy) -> str:
    """Which parameter of `layers` layers `name` is a copy of in a network of `target`; with "identity" it may lack."""
    layer, row = split_name(name)
    if layer < 0:
        return name
    source = source_layers(layers, target, order)[layer]
    if order == "identity":
        # The LayerNorm that ended the encoder goes on doing so: what it makes, no other could pass on unchanged.
        ends = {layers - 1: target - 1, target - 1: layers - 1} if row.startswith(LAST_NORM) else {}
        source = ends.get(layer, layer)
    return f"layers.{source}.{row}"


def identity_layers(fresh: Weights, layers: int) -> dict[str, Tensor]:
    """Weights of a deeper network, the layers from number `layers` on made to add nothing: they only normalise.

    What the layers below end with is normalised already, by a LayerNorm of weight 1 and bias 0 (`stack_weights`). So
    the deeper network computes what the shallow one did, whatever `fresh` holds: a published network's weights, too.
    """

    def changed(name: str, tensor: Tensor) -> Tensor:
        layer, row = split_name(name)
        # Of the layer below the new ones only the last LayerNorm is taken from here.
        if layer >= layers - 1 and "LayerNorm" in row:
            return torch.ones_like(tensor) if facts_of(name).role == "norm" else torch.zeros_like(tensor)
        adds = layer >= layers and row.startswith(SUBLAYER_OUTPUTS) and not is_coefficient(name)
        return torch.zeros_like(tensor) if adds else tensor

    return {name: changed(name, tensor) for name, tensor in fresh.items()}
