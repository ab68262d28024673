"""`earlybert ticket tune`: which width multiple spends a ticket's neurons fastest on a device."""

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from earlybert.core.errors import UserError
from earlybert.pretrain.commands.recipe import recipe_to_begin
from earlybert.pretrain.cost.gpus import family
from earlybert.pretrain.cost.widths import DEVICES, Choice, Seconds, fastest, masks_by_multiple, measure, predict, price
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import ticket_plan
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path, run_config_path
from earlybert.pretrain.ticket.search import load_snapshot, recorded_steps, snapshot_path

# Of a micro-batch that the recipe leaves to the device's memory: enough to fill a GPU.
TOKENS = 8192


def add_tune(actions: Any) -> None:
    """Adds the action to the `earlybert ticket` parser."""
    parser = actions.add_parser("tune", help="find the width multiple that a device runs fastest")
    # No positional argument: argparse would take an override's value for it.
    parser.add_argument("--run_dir", type=Path, help="a run whose recorded coefficients say the widths")
    parser.add_argument("--config", help="without a run: a recipe, with --FIELD VALUE overrides, and widths by chance")
    parser.add_argument("--device", choices=DEVICES, help="default: this machine's")
    parser.add_argument(
        "--tokens", type=_positive, help=f"tokens of a micro-batch; default: the first phase's, {TOKENS:,} if auto"
    )
    parser.add_argument("--measure", action="store_true", help="time this machine instead of modelling a device")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a positive integer")
    return int(text)


def tune(arguments: Namespace, overrides: list[str]) -> None:
    """Prints what each multiple costs, and the one to draw with."""
    if (arguments.run_dir is None) == (arguments.config is None):
        raise UserError("ticket tune takes either --run-dir RUN or --config RECIPE")
    if arguments.measure and arguments.device:
        raise UserError("--measure times this machine, so it takes no --device; leave one of them out")
    if arguments.run_dir:
        recipe = load_recipe(run_config_path(arguments.run_dir), [])
        coefficients_LU = _recorded(arguments.run_dir)
    else:
        recipe = recipe_to_begin(recipe_path(arguments.config), overrides, arguments.parser)
        check_recipe(recipe)
        shape = ticket_plan(recipe).ticket_shape.num_layers, recipe.model.intermediate_size
        coefficients_LU = np.random.default_rng(recipe.seed).random(shape, dtype=np.float32)
    recipe.draw.check(recipe.model.intermediate_size)
    phase = recipe.first_phase
    tokens = arguments.tokens or (TOKENS if phase.micro_batch == "auto" else phase.micro_batch * phase.length)
    masks = masks_by_multiple(coefficients_LU, recipe.draw)
    widths = sorted({int(width) for mask_LU in masks.values() for width in mask_LU.sum(axis=1)})
    name, seconds = _clock(arguments, recipe, widths, tokens)
    choices = price(masks, seconds)
    dense = len(coefficients_LU) * seconds(recipe.model.intermediate_size)
    print(f"feed-forward parts of {len(coefficients_LU)} layers, forward and backward, {tokens:,} tokens, {name}")
    _print_choices(choices, dense, recipe)
    chosen = fastest(choices)
    print(f"dense: {dense * 1e3:.3f} ms. Draw with --draw.width_multiple {chosen.multiple}")
    if chosen.multiple != recipe.draw.width_multiple:
        print(f"(the recipe has {recipe.draw.width_multiple})")


def _recorded(run_dir: Path) -> NDArray[np.float32]:
    """Neuron coefficients of a run's last recording, [L, U]."""
    steps = recorded_steps(run_dir / "search")
    if not steps:
        raise UserError(f"{run_dir / 'search'}: holds no coefficient recordings to tune for")
    return load_snapshot(snapshot_path(run_dir / "search", steps[-1])).neurons_LU


def _clock(arguments: Namespace, recipe: Recipe, widths: list[int], tokens: int) -> tuple[str, Seconds]:
    """Where the seconds come from, in words, and the seconds of a width."""
    hidden_size = recipe.model.hidden_size
    if not arguments.measure:
        name = arguments.device or _this_device()
        return f"modelled for {name}", predict(DEVICES[name], hidden_size, tokens)
    # Only here: the model needs no PyTorch.
    import torch

    from earlybert.core.devices import device_type, half_precision, set_matmul_precision

    device = torch.device(device_type())
    set_matmul_precision(recipe.matmul_precision, device)
    dtype = half_precision(device) if device.type == "cuda" else torch.float32
    seconds = measure([*widths, recipe.model.intermediate_size], hidden_size, tokens, device, dtype)
    return f"measured on this {device.type} in {str(dtype).removeprefix('torch.')}", seconds


def _this_device() -> str:
    """The model that fits this machine; raises UserError for a GPU that has none."""
    import torch

    from earlybert.core.devices import device_type

    if device_type() == "cpu":
        return "cpu"
    name = torch.cuda.get_device_name()
    if known := family(name):
        return known
    raise UserError(f"the cost model does not know this GPU, {name}; use --measure, or one of {', '.join(DEVICES)}")


def _print_choices(choices: list[Choice], dense: float, recipe: Recipe) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("multiple", "widths", "neurons", "ms", "time / dense", "FLOPs / dense", "ns / neuron", "moved"):
        table.add_column(column, justify="right")
    full = len(choices[0].widths) * recipe.model.intermediate_size
    for choice in choices:
        table.add_row(
            *(str(choice.multiple), f"{min(choice.widths)}-{max(choice.widths)}", f"{sum(choice.widths):,}"),
            *(f"{choice.seconds * 1e3:.3f}", f"{choice.seconds / dense:.3f}", f"{sum(choice.widths) / full:.3f}"),
            *(f"{choice.seconds_per_neuron * 1e9:.1f}", f"{choice.moved:.3f}"),
        )
    Console(width=160).print(table)
