"""`earlybert plan --cluster`: how a plan fits a cluster, how long it takes there, and how that scales. A model."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from earlybert.core.errors import UserError
from earlybert.core.text import duration
from earlybert.pretrain.cost.cluster import (
    USABLE_SHARE,
    Cluster,
    Shape,
    StageCost,
    checkpoint_bytes,
    disk_bytes,
    stage_cost,
)
from earlybert.pretrain.plan.plan import Plan, PlannedStage
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage

LARGEST = 1024
NO_ROOM = "does not fit"


@dataclasses.dataclass(frozen=True)
class StageOnCluster:
    """A stage, what it takes on the cluster, and how many steps of it there are."""

    stage: Stage
    shape: Shape
    cost: StageCost

    @property
    def seconds(self) -> float:
        return self.stage.steps * self.cost.step_seconds


def on_cluster(stages: Sequence[PlannedStage], cluster: Cluster, muon: bool) -> list[StageOnCluster]:
    """What each of these stages takes; raises UserError where one does not fit.

    A ticket that is not drawn yet has the counts of any other.
    """
    shapes = [(planned.stage, Shape.of(planned.network, planned.stage, muon=muon)) for planned in stages]
    return [StageOnCluster(stage, shape, stage_cost(shape, cluster)) for stage, shape in shapes]


def on_cluster_if_it_fits(
    stages: Sequence[PlannedStage], cluster: Cluster, muon: bool
) -> tuple[list[StageOnCluster], str]:
    """As `on_cluster`; where one does not fit none of them, and why."""
    try:
        return on_cluster(stages, cluster, muon), ""
    except UserError as error:
        return [], str(error)


def print_cluster_plan(plan: Plan, cluster: Cluster, *, muon: bool) -> None:
    """Memory and time per stage, time in all beside dense training, checkpoints, disk, and the scaling table.

    Raises UserError where the plan does not fit; the dense network may be too large.
    """
    planned = on_cluster(plan.stages, cluster, muon)
    dense, too_large = on_cluster_if_it_fits(plan.dense, cluster, muon)
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
    if too_large:
        print(f"dense:       {NO_ROOM}: {too_large}")
    _print_storage(plan.recipe, planned)
    limits: dict[str, int] = {}
    for each in planned:
        limits[each.stage.phase] = min(each.cost.micro_batch, limits.get(each.stage.phase, each.cost.micro_batch))
    print("options:     " + " ".join(f"--{phase}.micro_batch {size}" for phase, size in limits.items()))
    print(
        f"micro-batch: a GPU's share of the batch in as few equal parts as fit into {USABLE_SHARE:.0%} of the memory; "
        "auto takes what is free when a stage begins"
    )
    print_scaling(plan, cluster, muon)


def _print_totals(planned: list[StageOnCluster], dense: list[StageOnCluster], cluster: Cluster) -> None:
    ours, theirs = (sum(each.seconds for each in group) for group in (planned, dense))
    print(f"this plan:   {duration(ours)}, {ours * cluster.gpus / 3600:,.0f} GPU-hours")
    if theirs:
        hours = f"{theirs * cluster.gpus / 3600:,.0f} GPU-hours"
        print(f"dense:       {duration(theirs)}, {hours}; this plan saves {1 - ours / theirs:.1%} of the time")


def _print_storage(recipe: Recipe, planned: list[StageOnCluster]) -> None:
    shapes = [each.shape for each in planned]
    every = ", ".join(
        f"{each.stage.name} {duration(recipe.checkpoint_every * each.cost.step_seconds)}" for each in planned
    )
    sizes = sorted(map(checkpoint_bytes, shapes))
    ends = " to ".join(dict.fromkeys(f"{size / 1e9:.1f}" for size in (sizes[0], sizes[-1])))
    print(f"checkpoints: every {recipe.checkpoint_every} steps ({every}), {ends} GB each")
    disk = disk_bytes(shapes, recipe.keep_checkpoints) / 1e9
    print(f"disk:        {disk:.1f} GB for {recipe.keep_checkpoints} + 1 checkpoints and exports, without the corpus")


def print_scaling(plan: Plan, cluster: Cluster, muon: bool) -> None:
    """From one such GPU to 1,024, or one per sequence.

    Efficiency: speed-up over the fewest of them that the plan fits, divided by how many times as many they are.
    """
    print(f"\nscaling with {cluster.gpus_per_node} GPUs a node (a model, not measured)")
    samples = f"samples a GPU and step, {plan.stages[0].stage.phase}"
    table = _table("GPUs", "nodes", "this plan", "dense", "saved", "efficiency", samples)
    fewest = 0.0  # GPU-seconds
    count = 1
    while count <= min(LARGEST, *(planned.stage.global_batch for planned in plan.stages)):
        inside = min(count, cluster.gpus_per_node)
        sized = dataclasses.replace(cluster, nodes=-(-count // inside), gpus_per_node=inside)
        planned, _ = on_cluster_if_it_fits(plan.stages, sized, muon)
        dense, too_large = on_cluster_if_it_fits(plan.dense, sized, muon)
        ours, theirs = (sum(each.seconds for each in group) for group in (planned, dense))
        fewest = fewest or ours * sized.gpus
        table.add_row(
            f"{sized.gpus:,}",
            f"{sized.nodes:,}",
            duration(ours) if ours else NO_ROOM,
            duration(theirs) if theirs else NO_ROOM if too_large else "-",
            f"{1 - ours / theirs:.1%}" if ours and theirs else "-",
            f"{fewest / ours / sized.gpus:.1%}" if ours else "-",
            f"{plan.stages[0].stage.global_batch / sized.gpus:,.1f}",
        )
        count = count * 2 if count >= cluster.gpus_per_node else cluster.gpus_per_node
    Console(width=160).print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    return table
