"""The plan: the list of stages, what happens between them, and what each will cost."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from earlybert.core.errors import UserError
from earlybert.core.files import read_json
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.depth import Copy, at_depth
from earlybert.pretrain.network.work import count_parameters, flops_per_sequence
from earlybert.pretrain.plan.recipe import PHASES, Recipe
from earlybert.pretrain.ticket.ticket import FullShape, Ticket, full_shape, narrow_config, random_ticket, stack_ticket

Begin = Literal["initial", "narrow", "stack", "lengthen"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with one model shape, one sequence length, one batch size and one schedule.

    `begin` says where its weights come from: fresh "initial" ones, "narrow" or "stack" surgery, or "lengthen": the
    previous stage's weights and moments with step counter and schedule restarted. `layers` is its network's depth.
    `schedule_steps` is the length of the learning-rate curve, `schedule_start` the place on it, and in the data, where
    the stage begins: the search runs the first `steps` of a longer curve, the parts of a phase 1 that grows the
    network share one. `knots` are points (step, learning rate) of a curve of straight lines.
    """

    name: str
    begin: Begin
    narrow: bool
    layers: int
    copy: Copy
    length: int
    max_predictions: int
    global_batch: int
    micro_batch: int
    steps: int
    schedule_start: int
    schedule_steps: int
    learning_rate: float
    warmup: float
    knots: tuple[tuple[float, float], ...]

    @property
    def searching(self) -> bool:
        return self.name == "search"

    @property
    def phase(self) -> str:
        """The recipe's section that its numbers come from."""
        return "phase2" if self.name == "phase2" else "phase1"

    @property
    def first_position(self) -> int:
        """Where in the data the stage begins, samples."""
        return self.schedule_start * self.global_batch

    def learning_rate_at(self, step: int, schedule: str) -> float:
        """Learning rate of step 0, 1, ...: PolyWarmUp with degree 0.5, as NVIDIA's BERT has it, or continuous."""
        taken = self.schedule_start + step + 1
        if self.knots:
            steps, rates = np.array(self.knots).T
            return float(np.interp(taken, steps, rates))
        progress = taken / self.schedule_steps
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        decay = math.sqrt(max(0.0, 1.0 - progress))
        if schedule == "poly_continuous":
            decay /= math.sqrt(1.0 - self.warmup)
        return self.learning_rate * decay


def model_config(recipe: Recipe, vocab_size: int, next_sentence: bool, pad_token_id: int = 0) -> NetworkConfig:
    """Configuration of the full network."""
    model = recipe.model
    return NetworkConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_position_embeddings,
        hidden_dropout_prob=model.hidden_dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        initializer_range=model.initializer_range,
        next_sentence=next_sentence,
        pad_token_id=pad_token_id,
    )


def budgeted_steps(steps: int, factor: float) -> int:
    """Steps after the budget factor, rounded half up."""
    return max(1, math.floor(steps * factor + 0.5))


def phase_steps(recipe: Recipe, name: str) -> int:
    """Steps that the plan trains a phase for."""
    factor = recipe.narrow.step_factor if "narrow" in recipe.plan else 1.0
    return budgeted_steps(recipe.phase(name).steps, factor)


def stack_borders(recipe: Recipe, total: int) -> list[int]:
    """Where the parts of a phase 1 of `total` steps begin and end: 0, the steps at which it is stacked, `total`."""
    stacks = recipe.stack.until if "stack" in recipe.plan else []
    return [0, *(budgeted_steps(total, share) for share in stacks), total]


def learning_rate_knots(recipe: Recipe, total: int) -> tuple[tuple[float, float], ...]:
    """Phase 1's learning rate as straight lines: up to the peak, down to each of `stack.learning_rates`."""
    if "stack" not in recipe.plan or not recipe.stack.learning_rates:
        return ()
    _, *ends = stack_borders(recipe, total)
    peak = (total * recipe.phase1.warmup, recipe.phase1.learning_rate)
    return ((0.0, 0.0), peak, *zip(map(float, ends), recipe.stack.learning_rates, strict=True))


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe's plan, which must have passed `check_recipe`."""
    stages: list[Stage] = []
    begin: Begin = "initial"
    narrow, part, start = False, 0, 0
    for name in recipe.plan:
        if name == "narrow":
            narrow, begin = True, "narrow"
        elif name == "stack":
            part, begin = part + 1, "stack"
            start = stack_borders(recipe, phase_steps(recipe, "phase1"))[part]
        else:
            stage = _stage(recipe, name, begin, narrow, part, 0 if name == "phase2" else start)
            stages.append(stage)
            begin = "lengthen"
            # A ticket searched for before anything is trained starts over; one searched for on the way goes on.
            start = 0 if stage.searching and part == 0 else start + stage.steps
    return stages


def _stage(recipe: Recipe, name: str, begin: Begin, narrow: bool, part: int, start: int) -> Stage:
    """One stage: `part` counts the stacks before it, `start` is where it begins on its phase's curve."""
    phase, total = recipe.phase(name), phase_steps(recipe, name)
    depths = [*recipe.stack.layers, recipe.model.num_layers] if "stack" in recipe.plan else [recipe.model.num_layers]
    if name == "search" and part == 0:
        total = phase.steps  # the curve of the full network in the full time
    end = stack_borders(recipe, total)[part + 1] if name == "phase1" else total
    grows = name == "phase1" and depths[part] < depths[-1]
    return Stage(
        name=f"phase1-{depths[part]}-layers" if grows else name,
        begin=begin,
        narrow=narrow,
        layers=depths[part],
        copy=recipe.stack.copy,
        length=phase.length,
        max_predictions=phase.max_predictions,
        global_batch=phase.global_batch,
        micro_batch=phase.micro_batch,
        steps=recipe.search.steps if name == "search" else end - start,
        schedule_start=start,
        schedule_steps=total,
        learning_rate=phase.learning_rate,
        warmup=phase.warmup,
        knots=() if name == "phase2" else learning_rate_knots(recipe, total),
    )


def dense_stages(recipe: Recipe) -> list[Stage]:
    """The stages of training the full network in all phases of the plan."""
    phases = dict.fromkeys(name for name in recipe.plan if name in PHASES)
    return build_stages(dataclasses.replace(recipe, plan=list(phases)))


def ticket_shape(full: NetworkConfig, stages: list[Stage]) -> FullShape:
    """The shape of the network that the plan's ticket is drawn from and cuts."""
    layers = (stage.layers for stage in stages if stage.searching or stage.narrow)
    return full_shape(at_depth(full, next(layers, full.num_hidden_layers)))


def stage_ticket(stage: Stage, ticket: Ticket | None) -> Ticket | None:
    """The run's ticket at the stage's depth; None for a stage that is not narrow. Raises ValueError without one."""
    if not stage.narrow:
        return None
    if ticket is None:
        raise ValueError(f"stage {stage.name} is narrow and needs a ticket")
    return stack_ticket(ticket, stage.layers, stage.copy)


def stage_model(full: NetworkConfig, stage: Stage, ticket: Ticket | None) -> NetworkConfig:
    """Configuration of the network that a stage trains."""
    config, own = at_depth(full, stage.layers), stage_ticket(stage, ticket)
    if own is None or ticket is None:
        return dataclasses.replace(config, searching=stage.searching)
    return dataclasses.replace(narrow_config(config, own), ticket_sha256=ticket.sha256)


def stage_flops(config: NetworkConfig, stage: Stage) -> float:
    """Operations of one optimizer step."""
    per_sequence = flops_per_sequence(
        config.heads,
        config.neurons,
        config.hidden_size,
        config.head_size,
        config.vocab_size,
        stage.length,
        stage.max_predictions,
    )
    return stage.global_batch * per_sequence


def describe_plan(recipe: Recipe, full: NetworkConfig, ticket: Ticket | None = None) -> dict[str, Any]:
    """Content of plan.json: per stage all its numbers, tokens, parameters and operations.

    Before a ticket is drawn its counts are already known, and with them parameters and operations: both depend on the
    number of units only, not on which ones.
    """
    stages = build_stages(recipe)
    counts = ticket or random_ticket(ticket_shape(full, stages), recipe.draw, seed=0)
    described = []
    for stage in stages:
        config = stage_model(full, stage, counts)
        described.append(
            dataclasses.asdict(stage)
            | {
                "tokens": stage.steps * stage.global_batch * stage.length,
                "parameters": count_parameters(config),
                "flops_per_step": stage_flops(config, stage),
                "flops": stage.steps * stage_flops(config, stage),
            }
        )
    dense_flops = sum(stage.steps * stage_flops(full, stage) for stage in dense_stages(recipe))
    return {
        "plan": recipe.plan,
        "schedule": recipe.schedule,
        "stages": described,
        "flops": sum(stage["flops"] for stage in described),
        "dense_parameters": count_parameters(full),
        "dense_flops": dense_flops,
    }


def read_plan(run_dir: Path) -> dict[str, Any]:
    """plan.json of a run; raises UserError where there is none, or one that `describe_plan` does not write."""
    path = run_dir / "plan.json"
    plan = read_json(path)
    fields = {"tokens", "parameters", "flops_per_step", "flops", *(field.name for field in dataclasses.fields(Stage))}
    if not (
        isinstance(plan, dict)
        and {"plan", "stages", "flops", "dense_parameters", "dense_flops"} <= plan.keys()
        and all(fields <= stage.keys() for stage in plan["stages"])
    ):
        raise UserError(f"{path}: is not what this version writes; report the run with the one that made it")
    return plan
