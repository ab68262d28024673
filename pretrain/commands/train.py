"""`earlybert train`, which is `python pretrain/run.py`, too: reads the arguments, then trains."""

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path

from earlybert.core import ranks
from earlybert.core.arguments import ArgumentParser
from earlybert.core.errors import UserError
from earlybert.core.paths import kind_of, require_place
from earlybert.data_prep.samples.manifest import read_manifest
from earlybert.pretrain.commands.recipe import recipe_to_begin
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import (
    DEFAULT_DEEPSPEED,
    DEFAULT_RECIPE,
    Recipe,
    load_recipe,
    recipe_parser,
    recipe_path,
)
from earlybert.pretrain.plan.same_run import require_same_run
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train.stopping import ignore_signals


def main(argv: list[str]) -> None:
    """Trains the recipe's plan in the run directory, or says what came of it where it is done; raises UserError."""
    ranks.check_environment()
    ranks.warn_once()
    try:
        recipe, run_dir, begin_again = parse_arguments(argv)
        if (run_dir / "DONE").is_file():
            print_done(run_dir)
        else:
            if not (run_dir / "config.yaml").is_file():
                _require_beginning(recipe, run_dir)
            check_recipe(recipe, ranks.world_size())
            # By name, because the script stands above the commands. Only now, because it imports PyTorch and DeepSpeed.
            importlib.import_module("earlybert.pretrain.run").run(recipe, run_dir, begin_again=begin_again)
    finally:
        # How the process ends is decided.
        ignore_signals()


def print_done(run_dir: Path) -> None:
    from earlybert.pretrain.report.outcome import read_outcome
    from earlybert.pretrain.report.summary import print_summary

    if ranks.rank() == 0:
        print_summary(read_outcome(run_dir))
        print(f"{run_dir} is done. Another --run-dir starts a new run.")


def _require_beginning(recipe: Recipe, run_dir: Path) -> None:
    """Raises UserError where it can be seen without PyTorch and DeepSpeed that the run cannot begin."""
    require_place(run_dir, "run-dir")
    if kind := kind_of(run_dir):
        raise UserError(f"run-dir is {run_dir}, which is {kind}; name a new folder")
    if recipe.data:
        read_manifest(Path(recipe.data), check_files=False)
    if recipe.ticket:
        Ticket.load(Path(recipe.ticket))


def parse_arguments(argv: list[str]) -> tuple[Recipe, Path, bool]:
    """The recipe with all overrides, the run directory, and whether to begin again; raises UserError."""
    usage = "earlybert train [--config RECIPE] [--run_dir DIR] [--FIELD VALUE ...]"
    parser = ArgumentParser("earlybert train", add_help=False, usage=usage)
    parser.add_argument("--config", help="a recipe's name or a YAML file; default quickstart")
    parser.add_argument("--run_dir", type=Path, help="default runs/RECIPE")
    parser.add_argument("--begin_again", action="store_true", help="start anew though the run's checkpoints are lost")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # from the deepspeed launcher
    parser.add_argument("-h", "--help", action="store_true", help="show this and every field")
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.help:
        parser.print_help()
        recipe_parser().print_help()
        sys.exit(0)
    run_dir = arguments.run_dir or Path("runs") / Path(arguments.config or DEFAULT_RECIPE).stem
    stored = run_dir / "config.yaml"
    if not stored.is_file():
        recipe = recipe_to_begin(recipe_path(arguments.config or DEFAULT_RECIPE), overrides, parser)
        return recipe, run_dir, arguments.begin_again
    begun = load_recipe(stored, [])
    file = recipe_path(arguments.config) if arguments.config else stored
    recipe = recipe_to_begin(file, overrides, parser, begun.initial)
    if begun.optimizer != recipe.optimizer:
        # The stored one has what the DeepSpeed file said.
        from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile

        deepspeed_file = DeepSpeedFile.load(Path(recipe.deepspeed or DEFAULT_DEEPSPEED))
        recipe = dataclasses.replace(recipe, optimizer=deepspeed_file.settled(recipe.optimizer))
        begun = dataclasses.replace(begun, optimizer=deepspeed_file.settled(begun.optimizer))
    require_same_run(begun, recipe, stored)
    return dataclasses.replace(recipe, data=recipe.data or begun.data), run_dir, arguments.begin_again
