"""The recipe of a run that is to begin or to go on: where it names a network, that network has been looked at."""

from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.recipe import Recipe, load_recipe


def recipe_to_begin(file: Path, overrides: list[str], parser: ArgumentParser, begun_with: str | None = None) -> Recipe:
    """`load_recipe` for commands that train or plan; with `initial` the shape is that network's.

    The `parser` has read what is no field of a recipe. `begun_with` stands for `initial` where the recipe has none.
    Raises UserError as `load_recipe` does, or where a run cannot begin with the network.
    """
    return load_recipe(file, overrides, look_at=_look_at, begun_with=begun_with, beside=parser.options)


def _look_at(name: str) -> NetworkConfig:
    # Only now, because it imports PyTorch.
    from earlybert.pretrain.checkpoint.initial import initial_network

    return initial_network(name)
