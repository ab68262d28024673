"""`earlybert plan`: what would run, before anything runs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from earlybert.data_prep.corpus import Corpus
from earlybert.pretrain.arguments import ArgumentParser
from earlybert.pretrain.checks import check_recipe
from earlybert.pretrain.config import DEFAULT_RECIPE, Recipe, load_recipe, recipe_path
from earlybert.pretrain.plan import describe_plan, model_config
from earlybert.pretrain.surgery import full_shape
from earlybert.pretrain.ticket import Ticket


def main(argv: list[str]) -> None:
    """Prints the stages with steps, tokens, parameters and operations."""
    parser = ArgumentParser("earlybert plan", allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--config", default=DEFAULT_RECIPE, help="a recipe's name or a YAML file; default quickstart")
    parser.epilog = "Every field of the recipe can be overridden, e.g. --phase1.steps 100."
    arguments, overrides = parser.parse_known_args(argv)
    recipe = load_recipe(recipe_path(arguments.config), overrides)
    check_recipe(recipe)
    print_plan(describe(recipe))


def describe(recipe: Recipe) -> dict[str, Any]:
    """The plan for the prepared corpus's vocabulary, or for the one that the recipe would train."""
    vocab_size, next_sentence = recipe.corpus.vocab_size, recipe.corpus.next_sentence
    if recipe.data:
        corpus = Corpus.open(Path(recipe.data))
        vocab_size, next_sentence = corpus.vocab_size, corpus.next_sentence
    full = model_config(recipe, vocab_size, next_sentence)
    ticket = Ticket.load(Path(recipe.ticket)) if recipe.ticket else None
    if ticket is not None:
        ticket.require_model(full_shape(full), str(recipe.ticket))
    return describe_plan(recipe, full, ticket)


def print_plan(plan: dict[str, Any]) -> None:
    """One row a stage, and what dense training would cost."""
    table = Table(box=None, pad_edge=False)
    for column in (
        "stage",
        "begins",
        "steps",
        "batch",
        "length",
        "learning rate",
        "warm-up",
        "tokens",
        "parameters",
        "FLOPs",
    ):
        table.add_column(column, justify="left" if column in ("stage", "begins") else "right")
    for stage in plan["stages"]:
        table.add_row(
            stage["name"],
            stage["begin"],
            f"{stage['steps']:,}"
            + (f" of {stage['schedule_steps']:,}" if stage["steps"] != stage["schedule_steps"] else ""),
            f"{stage['global_batch']:,}",
            str(stage["length"]),
            f"{stage['learning_rate']:g}",
            f"{stage['warmup']:g}",
            f"{stage['tokens'] / 1e6:,.1f} M",
            f"{stage['parameters']:,}",
            f"{stage['flops']:.3g}",
        )
    # Never folded: piped into a file, a table is as wide as it needs to be.
    Console(width=160).print(table)
    print(f"plan: {' -> '.join(plan['plan'])}")
    line = f"dense training: {plan['dense_parameters']:,} parameters, {plan['dense_flops']:.3g} FLOPs"
    print(f"{line}; this plan takes {plan['flops'] / plan['dense_flops']:.1%} of that")
