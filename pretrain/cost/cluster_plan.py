"""`earlybert plan --cluster`: how a plan fits a cluster, how long it takes there, and how that scales. A model."""

import dataclasses

from rich.console import Console
from rich.table import Table

from earlybert.core.text import duration
from earlybert.pretrain.cost.cluster import Cluster, Shape, StageCost, checkpoint_bytes, disk_bytes, stage_cost
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage, build_stages, dense_stages, stage_model, ticket_shape
from earlybert.pretrain.ticket.ticket import Ticket, random_ticket

LARGEST = 1024


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """A stage, what it takes on the cluster, and how many steps of it there are."""

    stage: Stage
    shape: Shape
    cost: StageCost

    @property
    def seconds(self) -> float:
        return self.stage.steps * self.cost.step_seconds


def plan_stages(recipe: Recipe, full: NetworkConfig, ticket: Ticket | None, cluster: Cluster) -> list[PlannedStage]:
    """The recipe's own stages on the cluster. A ticket that is not drawn yet has the counts of any other."""
    stages = build_stages(recipe)
    counts = ticket or random_ticket(ticket_shape(full, stages), recipe.draw, seed=0)
    found = []
    for stage in stages:
        shape = Shape.of(stage_model(full, stage, counts), stage)
        found.append(PlannedStage(stage, shape, stage_cost(shape, cluster)))
    return found


def plan_dense(recipe: Recipe, full: NetworkConfig, cluster: Cluster) -> list[PlannedStage]:
    """The phases of the plan as dense training would run them."""
    shapes = [(stage, Shape.of(full, stage)) for stage in dense_stages(recipe)]
    return [PlannedStage(stage, shape, stage_cost(shape, cluster)) for stage, shape in shapes]


def print_cluster_plan(recipe: Recipe, full: NetworkConfig, ticket: Ticket | None, cluster: Cluster) -> None:
    """Memory and time per stage, time in all beside dense training, checkpoints, disk, and the scaling table."""
    planned, dense = plan_stages(recipe, full, ticket, cluster), plan_dense(recipe, full, cluster)
    print(
        f"\non {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu_name}, {cluster.network_gbit:g} Gbit/s a node "
        "(a model, nothing of it measured on your machines; formulas and checks in docs/cost-model.md)"
    )
    table = _table(
        "stage", "micro-batch", "accumulation", "memory/GPU", "step", "communication", "optimizer", "tokens/s", "time"
    )
    for title, group in (("", planned), ("dense ", dense)):
        for each in group:
            cost, stage = each.cost, each.stage
            table.add_row(
                title + stage.name,
                str(cost.micro_batch),
                str(cost.accumulation),
                f"{cost.peak_bytes / 1e9:.1f} GB",
                f"{cost.step_seconds:.2f} s",
                f"{cost.communication / cost.step_seconds:.1%}",
                f"{cost.optimizer / cost.step_seconds:.1%}",
                f"{stage.global_batch * stage.length / cost.step_seconds:,.0f}",
                duration(each.seconds),
            )
    Console(width=160).print(table)
    _print_totals(planned, dense, cluster)
    _print_storage(recipe, planned)
    limits: dict[str, int] = {}
    for each in planned:
        limits[each.stage.phase] = min(each.cost.micro_batch, limits.get(each.stage.phase, each.cost.micro_batch))
    print("to run so:   " + " ".join(f"--{phase}.micro_batch {size}" for phase, size in limits.items()))
    print_scaling(recipe, full, ticket, cluster)


def _print_totals(planned: list[PlannedStage], dense: list[PlannedStage], cluster: Cluster) -> None:
    ours, theirs = (sum(each.seconds for each in group) for group in (planned, dense))
    print(f"this plan:   {duration(ours)}, {ours * cluster.gpus / 3600:,.0f} GPU-hours")
    if theirs:
        hours = f"{theirs * cluster.gpus / 3600:,.0f} GPU-hours"
        print(f"dense:       {duration(theirs)}, {hours}; this plan saves {1 - ours / theirs:.1%} of the time")


def _print_storage(recipe: Recipe, planned: list[PlannedStage]) -> None:
    parameters = [each.shape.parameters for each in planned]
    every = ", ".join(
        f"{each.stage.name} {duration(recipe.checkpoint_every * each.cost.step_seconds)}" for each in planned
    )
    ends = (checkpoint_bytes(count) / 1e9 for count in (min(parameters), max(parameters)))
    sizes = " to ".join(dict.fromkeys(f"{size:.1f}" for size in ends))
    print(f"checkpoints: every {recipe.checkpoint_every} steps ({every}), {sizes} GB each")
    disk = disk_bytes(parameters, recipe.keep_checkpoints) / 1e9
    print(
        f"disk:        {disk:.1f} GB for {recipe.keep_checkpoints} checkpoints, the next one and exports; corpus apart"
    )


def print_scaling(recipe: Recipe, full: NetworkConfig, ticket: Ticket | None, cluster: Cluster) -> None:
    """From one such GPU to 1,024, or one per sequence. Efficiency: speed-up over one GPU, divided by their number."""
    print(f"\nscaling with {cluster.gpus_per_node} GPUs a node (a model, not measured)")
    table = _table("GPUs", "nodes", "this plan", "dense", "saved", "efficiency", "samples a GPU and step, phase 1")
    one = 0.0
    count = 1
    while count <= min(LARGEST, *(stage.global_batch for stage in build_stages(recipe))):
        inside = min(count, cluster.gpus_per_node)
        sized = dataclasses.replace(cluster, nodes=-(-count // inside), gpus_per_node=inside)
        planned = plan_stages(recipe, full, ticket, sized)
        ours = sum(each.seconds for each in planned)
        theirs = sum(each.seconds for each in plan_dense(recipe, full, sized))
        one = one or ours
        table.add_row(
            f"{sized.gpus:,}",
            f"{sized.nodes:,}",
            duration(ours),
            duration(theirs) if theirs else "-",
            f"{1 - ours / theirs:.1%}" if theirs else "-",
            f"{one / ours / sized.gpus:.1%}",
            f"{planned[0].shape.global_batch / sized.gpus:,.1f}",
        )
        count = count * 2 if count >= cluster.gpus_per_node else cluster.gpus_per_node
    Console(width=160).print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    return table
