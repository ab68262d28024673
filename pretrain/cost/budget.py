"""What of a recipe fits into a budget of hours on a cluster: steps, batches, learning rates. A model, as all costs."""

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from earlybert.core.errors import UserError
from earlybert.pretrain.cost.cluster import Cluster
from earlybert.pretrain.cost.cluster_plan import on_cluster
from earlybert.pretrain.plan.plan import Plan
from earlybert.pretrain.plan.recipe import PhaseConfig, Recipe
from earlybert.pretrain.plan.stages import build_stages

# Share of the recipe's steps; where fewer fit, smaller batches are a better use of the time than fewer updates.
ENOUGH = 0.5
# The batch of the 24-hour BERT, the best one of Izsak et al. 2021 (arXiv:2104.07705, its released configuration).
SMALLEST_HALVED_BATCH = 4096
# Fewer updates than these train nothing.
FEWEST_STEPS = 100
# More than a century.
MOST_HOURS = 1_000_000


@dataclass(frozen=True)
class Proposal:
    """The recipe with the budget's numbers, how often its batches were halved, and the steps that fitted before that.

    Steps are those of the plan's first phase.
    """

    recipe: Recipe
    halvings: int
    unhalved_steps: int


def propose(plan: Plan, cluster: Cluster, hours: float, *, muon: bool) -> Proposal:
    """The plan's recipe, with as many steps as fit into the hours; raises UserError where hardly any do.

    All steps keep the recipe's proportions. The batches are the recipe's; where less than half of its steps fit, they
    are halved until so many do, the first phase's down to `SMALLEST_HALVED_BATCH` sequences. Learning rates follow the
    square root of the batch, LAMB's rule (You et al. 2020); Muon's own, too, so that the two keep their proportion.
    """
    if not 0 < hours <= MOST_HOURS:
        raise UserError(f"--hours is {hours:g}; it must be a number above 0, at most {MOST_HOURS:,}")
    phases = tuple(dict.fromkeys(planned.stage.phase for planned in plan.stages))
    own, halvings, fitted = plan.recipe.phase(phases[0]).steps, 0, []
    while True:
        halved = dataclasses.replace(plan, recipe=_with_batches(plan.recipe, phases, halvings, muon))
        seconds = _clock(halved, phases, cluster, muon)
        # More than fit: rounding moves every stage by less than a step.
        beyond = 2 * math.ceil(own * hours * 3600 / seconds(own)) + FEWEST_STEPS
        fitted.append(bisect_right(range(beyond), hours * 3600, lo=1, key=seconds) - 1)
        if fitted[-1] >= ENOUGH * own or not _may_halve(halved.recipe, phases, cluster):
            break
        halvings += 1
    if fitted[-1] < (fewest := min(FEWEST_STEPS, own)):
        raise UserError(
            f"--hours is {hours:g}, which is {fitted[-1]} steps of {phases[0]} on this cluster; it must be at least "
            f"{math.ceil(seconds(fewest) / 36) / 100:g}, for {fewest} steps"
        )
    return Proposal(_with_steps(halved.recipe, phases, fitted[-1]), halvings, fitted[0])


def _clock(plan: Plan, phases: tuple[str, ...], cluster: Cluster, muon: bool) -> Callable[[int], float]:
    """Seconds of the plan, by the steps of its first phase."""
    costs = [each.cost.step_seconds for each in on_cluster(plan.stages, cluster, muon)]

    def seconds(steps: int) -> float:
        stages = build_stages(_with_steps(plan.recipe, phases, steps))
        return sum(stage.steps * cost for stage, cost in zip(stages, costs, strict=True))

    return seconds


def _may_halve(recipe: Recipe, phases: tuple[str, ...], cluster: Cluster) -> bool:
    """Whether batches and cluster allow it, and the recipe has no rates beside the phases'."""
    halves = [recipe.phase(name).global_batch // 2 for name in phases]
    own_rates = any(stage.schedule.knots for stage in build_stages(recipe))
    return halves[0] >= SMALLEST_HALVED_BATCH and min(halves) >= cluster.gpus and not own_rates


def _with_batches(recipe: Recipe, phases: tuple[str, ...], halvings: int, muon: bool) -> Recipe:
    def scaled(rate: float, phase: PhaseConfig) -> float:
        return float(f"{rate * math.sqrt((phase.global_batch >> halvings) / phase.global_batch):.3g}")

    def smaller(phase: PhaseConfig) -> PhaseConfig:
        rate = scaled(phase.learning_rate, phase)
        return dataclasses.replace(phase, global_batch=phase.global_batch >> halvings, learning_rate=rate)

    own = {name: recipe.phase(name) for name in phases}
    changed: dict[str, Any] = {name: smaller(phase) for name, phase in own.items()}
    # Muon's rate is in proportion to this phase's, also where the plan has the other one alone.
    if muon and recipe.first_phase in own.values():
        rate = scaled(recipe.optimizer.muon_learning_rate, recipe.first_phase)
        changed["optimizer"] = dataclasses.replace(recipe.optimizer, muon_learning_rate=rate)
    return dataclasses.replace(recipe, **changed) if halvings else recipe


def _with_steps(recipe: Recipe, phases: tuple[str, ...], steps: int) -> Recipe:
    """So many steps of the first phase, the others and the search in proportion."""
    own = recipe.phase(phases[0]).steps

    def scaled(whole: int) -> int:
        return max(1, whole * steps // own)

    sections = {name: recipe.phase(name) for name in phases} | (
        {"search": recipe.search} if "search" in recipe.plan else {}
    )
    changed: dict[str, Any] = {
        name: dataclasses.replace(section, steps=scaled(section.steps)) for name, section in sections.items()
    }
    return dataclasses.replace(recipe, **changed)


def print_proposal(before: Recipe, found: Proposal, cluster: Cluster, hours: float, optimizer: str) -> None:
    """The budget's numbers, the rules that they follow, and the options that say them."""
    after = found.recipe
    phases = {stage.phase: after.phase(stage.phase) for stage in build_stages(after)}
    first = next(iter(phases))

    def listed(text: Callable[[PhaseConfig], str]) -> str:
        return ", ".join(f"{name} {text(phase)}" for name, phase in phases.items())

    print(
        f"budget:  {hours:g} h on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu_name}, by a model that leaves "
        "out start-up, checkpoints and validation (docs/cost-model.md)"
    )
    searched = f"search {after.search.steps:,}, " if "search" in after.plan else ""
    share = phases[first].steps / before.phase(first).steps
    steps = listed(lambda phase: f"{phase.steps:,}")
    print(f"steps:   {searched}{steps}; {share:.3g} times the recipe's, in its proportions")
    batches = listed(lambda phase: f"{phase.global_batch:,}")
    halved = f" / {2**found.halvings}, because with that only {found.unhalved_steps:,} steps of {first} would fit"
    print(
        f"batch:   {batches}; the recipe's{halved if found.halvings else ''}. It is halved while less than "
        f"{ENOUGH:.0%} of its steps fit, to {SMALLEST_HALVED_BATCH:,} at least, a 24-hour BERT's (Izsak et al. 2021)"
    )
    other = f", which is not {optimizer}'s" if optimizer != "Lamb" and found.halvings else ""
    rates = listed(lambda phase: f"{phase.learning_rate:g}")
    rates += f", Muon's {after.optimizer.muon_learning_rate:g}" if optimizer == "Muon" else ""
    print(f"rate:    {rates}; as the square root of the batch, LAMB's rule (You et al. 2020){other}")
    own = before.flat()
    flags = [f"--{name} {value}" for name, value in after.flat().items() if value != own[name]]
    print(f"options: {' '.join(flags)}\n")
