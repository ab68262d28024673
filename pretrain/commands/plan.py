"""`earlybert plan`: what would run, before anything runs."""

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from earlybert.core.arguments import ArgumentParser
from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.commands.recipe import recipe_to_begin
from earlybert.pretrain.cost.budget import print_proposal, propose
from earlybert.pretrain.cost.cluster import Cluster, parse_cluster
from earlybert.pretrain.cost.cluster_plan import print_cluster_plan
from earlybert.pretrain.cost.gpus import GPUS
from earlybert.pretrain.cost.muon import orthogonalisation_flops, orthogonalised_matrices
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import Plan, corpus_plan, unprepared_plan
from earlybert.pretrain.plan.recipe import DEFAULT_RECIPE, Recipe, recipe_path
from earlybert.pretrain.plan.text import COLUMNS, compared_with_dense, notes_on, plan_rows
from earlybert.pretrain.ticket.ticket import Ticket

if TYPE_CHECKING:
    from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile

# BERT saw its text 40 times (Devlin et al. 2019, A.2).
MANY_EPOCHS = 40


def main(argv: list[str]) -> None:
    """Prints the stages with steps, tokens, parameters and operations; with a cluster also memory, time and disk."""
    parser = ArgumentParser("earlybert plan", description=main.__doc__)
    parser.add_argument("--config", default=DEFAULT_RECIPE, help="a recipe's name or a YAML file; default quickstart")
    parser.add_argument(
        "--cluster", nargs="+", help=f'NODES x GPUS-PER-NODE GPU, for example "4x8 V100-32GB"; GPUs: {", ".join(GPUS)}'
    )
    parser.add_argument("--network_gbit", type=float, default=100.0, help="network of a node, Gbit/s; default 100")
    parser.add_argument("--hours", type=float, help="a budget on the cluster: proposes steps, batch and learning rate")
    parser.epilog = "Every field of the recipe can be overridden, e.g. --phase1.steps 100."
    arguments, overrides = parser.parse_known_args(argv)
    recipe = recipe_to_begin(recipe_path(arguments.config), overrides, parser)
    cluster = parse_cluster(" ".join(arguments.cluster), arguments.network_gbit) if arguments.cluster else None
    check_recipe(recipe, cluster.gpus if cluster else 1)
    plan = given_plan(recipe)
    file = given_deepspeed_file(recipe)
    optimizer = file.optimizer if file else "Lamb"
    if cluster:
        require_half_precision(recipe, file)
    if arguments.hours is not None:
        plan = plan_for_budget(plan, cluster, arguments.hours, optimizer)
    if file:
        require_agreement(plan, file, cluster)
    print_plan(plan)
    if recipe.data:
        print_epochs(plan, Corpus.open(Path(recipe.data)))
    print_micro_batches(plan, file, cluster)
    if muon := optimizer == "Muon":
        print_muon(plan)
    if cluster:
        print_cluster_plan(plan, cluster, muon=muon)


def plan_for_budget(plan: Plan, cluster: Cluster | None, hours: float, optimizer: str) -> Plan:
    """The plan with what fits into the hours, which it prints; raises UserError."""
    if cluster is None:
        raise UserError('--hours needs --cluster, the machines that the hours are of, for example "4x8 V100-32GB"')
    found = propose(plan, cluster, hours, muon=optimizer == "Muon")
    check_recipe(found.recipe, cluster.gpus)
    print_proposal(plan.recipe, found, cluster, hours, optimizer)
    return dataclasses.replace(plan, recipe=found.recipe)


def given_deepspeed_file(recipe: Recipe) -> "DeepSpeedFile | None":
    """The one that the recipe names; the default file has LAMB, and settles no batches."""
    if recipe.deepspeed is None:
        return None
    # DeepSpeed takes seconds to import. The first of these tells it that there is no GPU; else it remarks upon it.
    from earlybert.core import distributed  # noqa: F401
    from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile

    return DeepSpeedFile.load(Path(recipe.deepspeed))


def require_half_precision(recipe: Recipe, file: "DeepSpeedFile | None") -> None:
    """Raises UserError where recipe or file ask for fp32, of which the model knows neither speed nor memory."""
    stated = file.precision() if file else None
    if "fp32" in (recipe.precision, stated):
        where = "precision is" if recipe.precision == "fp32" else f"{recipe.deepspeed} asks for"
        raise UserError(f"{where} fp32, but --cluster is a model of half precision; it must be auto, bf16 or fp16")


def require_agreement(plan: Plan, file: "DeepSpeedFile", cluster: Cluster | None) -> None:
    """Raises UserError where the file and the recipe do not agree, as `train` does."""
    recipe = plan.recipe
    file.settled(recipe.optimizer)
    file.settled_compile(recipe.compile)
    precision = file.settled_precision(recipe.precision)
    file.require_precision(cluster.gpu.half_precision if cluster and precision == "auto" else precision)
    stages = [planned.stage for planned in plan.stages]
    if cluster is None:
        # Nobody knows on how many ranks the file's accumulation steps are meant to be right.
        for ranks in range(1, min(stage.global_batch for stage in stages) + 1):
            with suppress(UserError):
                file.require_batches(stages, ranks)
                return
    file.require_batches(stages, cluster.gpus if cluster else 1)


def print_epochs(plan: Plan, corpus: Corpus) -> None:
    """How often each phase sees the corpus; raises UserError where that lacks a phase's length."""
    what = "rows of samples" if plan.recipe.packed_rows else "samples"
    last = {planned.stage.phase: planned.stage for planned in plan.stages}
    for phase, stage in last.items():
        drawn = stage.first_position + stage.steps * stage.global_batch
        stored = stored_units(plan.recipe, corpus, stage.length)
        epochs = drawn / stored
        units = f"the {stored:,} {what} of length {stage.length}"
        often = f"{units} {epochs:,.1f} times" if epochs >= 1 else f"{drawn:,} of {units} once"
        print(f"data: {phase} sees {often}", end="")
        print("; a network learns such a text by heart: use more text, or fewer steps" if epochs > MANY_EPOCHS else "")


def stored_units(recipe: Recipe, corpus: Corpus, length: int) -> int:
    """How many of what the recipe's batches count there are, samples or rows of them; raises UserError without any."""
    return (corpus.stored_rows if recipe.packed_rows else corpus.stored_samples)("train", length)


def print_micro_batches(plan: Plan, file: "DeepSpeedFile | None", cluster: Cluster | None) -> None:
    """Sequences that a rank computes at once, by phase, and when `auto` is decided."""
    settled = {}
    for planned in plan.stages:
        stage = planned.stage
        number = None if stage.micro_batch == "auto" else stage.micro_batch
        if file is not None:
            ranks = cluster.gpus if cluster else 1
            number = file.settled_micro_batch(stage.global_batch, stage.micro_batch, ranks)
        settled[stage.phase] = number
    sizes = ", ".join(f"{phase} {'auto' if number is None else number}" for phase, number in settled.items())
    if None not in settled.values():
        print(f"micro-batch: {sizes}")
    elif cluster:
        print(f"micro-batch: {sizes}; the table of the cluster has what auto would be there")
    else:
        print(
            f"micro-batch: {sizes}; auto is decided when a stage begins, by the memory that the device then has free. "
            "--cluster says what it would be on other machines"
        )


def print_muon(plan: Plan) -> None:
    """What the optimizer adds to the plan."""
    added = sum(planned.stage.steps * orthogonalisation_flops(planned.network) for planned in plan.stages)
    share = added / sum(planned.flops for planned in plan.stages)
    matrices = len(orthogonalised_matrices(plan.stages[-1].network))
    print(
        f"Muon trains {matrices} matrices of the last stage's network, at a peak rate of "
        f"{plan.recipe.optimizer.muon_learning_rate:g} in phase 1. It takes {added:.3g} more FLOPs, {share:.2%} of the "
        "plan's."
    )


def given_plan(recipe: Recipe) -> Plan:
    """The plan for the prepared corpus, or for the one that the recipe would train; with the ticket that it names."""
    if recipe.data:
        corpus = Corpus.open(Path(recipe.data))
        plan = corpus_plan(recipe, corpus)
        for planned in plan.stages:
            stored_units(recipe, corpus, planned.stage.length)  # which raises where it has none
    else:
        plan = unprepared_plan(recipe)
    return plan.with_ticket(Ticket.load(Path(recipe.ticket)), recipe.ticket) if recipe.ticket else plan


def print_plan(plan: Plan) -> None:
    """One row a stage, and what dense training would cost."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("stage", "begins") else "right")
    for row in plan_rows(plan):
        table.add_row(*row)
    # Never folded: piped into a file, a table is as wide as it needs to be.
    Console(width=160).print(table)
    print(f"plan: {' -> '.join(plan.recipe.plan)}")
    print("\n".join([compared_with_dense(plan), *notes_on(plan)]))
