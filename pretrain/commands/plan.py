"""`earlybert plan`: what would run, before anything runs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from earlybert.core.arguments import ArgumentParser
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.cost.cluster import parse_cluster
from earlybert.pretrain.cost.cluster_plan import print_cluster_plan
from earlybert.pretrain.cost.gpus import GPUS
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import DEFAULT_RECIPE, Recipe, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages, describe_plan, model_config, ticket_shape
from earlybert.pretrain.plan.text import compared_with_dense
from earlybert.pretrain.ticket.ticket import Ticket


def main(argv: list[str]) -> None:
    """Prints the stages with steps, tokens, parameters and operations; with a cluster also memory, time and disk."""
    parser = ArgumentParser("earlybert plan", description=main.__doc__)
    parser.add_argument("--config", default=DEFAULT_RECIPE, help="a recipe's name or a YAML file; default quickstart")
    parser.add_argument(
        "--cluster", nargs="+", help=f'NODES x GPUS-PER-NODE GPU, for example "4x8 V100-32GB"; GPUs: {", ".join(GPUS)}'
    )
    parser.add_argument("--network_gbit", type=float, default=100.0, help="network of a node, Gbit/s; default 100")
    parser.epilog = "Every field of the recipe can be overridden, e.g. --phase1.steps 100."
    arguments, overrides = parser.parse_known_args(argv)
    recipe = load_recipe(recipe_path(arguments.config), overrides)
    cluster = parse_cluster(" ".join(arguments.cluster), arguments.network_gbit) if arguments.cluster else None
    check_recipe(recipe, cluster.gpus if cluster else 1)
    full, ticket = network(recipe)
    print_plan(describe_plan(recipe, full, ticket))
    if cluster:
        print_cluster_plan(recipe, full, ticket, cluster)


def network(recipe: Recipe) -> tuple[NetworkConfig, Ticket | None]:
    """The full network for the prepared corpus's vocabulary, or for the one that the recipe would train; the ticket."""
    vocab_size, next_sentence = recipe.corpus.vocab_size, recipe.corpus.next_sentence
    if recipe.data:
        corpus = Corpus.open(Path(recipe.data))
        vocab_size, next_sentence = corpus.vocab_size, corpus.next_sentence
    full = model_config(recipe, vocab_size, next_sentence)
    ticket = Ticket.load(Path(recipe.ticket)) if recipe.ticket else None
    if ticket is not None:
        ticket.require_model(ticket_shape(full, build_stages(recipe)), str(recipe.ticket))
    return full, ticket


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
    print(compared_with_dense(plan))
