"""The plan: the list of stages, what happens between them, and what each will cost."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from earlybert.pretrain.accounting import count_parameters, flops_per_sequence
from earlybert.pretrain.config import Recipe
from earlybert.pretrain.model import EarlyBertConfig
from earlybert.pretrain.surgery import full_shape, narrow_config
from earlybert.pretrain.ticket import Ticket, random_ticket

Begin = Literal["initial", "narrow", "lengthen"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with one model shape, one sequence length, one batch size and one schedule.

    `begin` says where its weights come from: fresh "initial" ones, "narrow" surgery, or "lengthen": the previous
    stage's weights and moments with step counter and schedule restarted. `schedule_steps` is the length of the
    learning-rate curve; the search runs the first `steps` of a longer one.
    """

    name: Literal["search", "phase1", "phase2"]
    begin: Begin
    narrow: bool
    length: int
    max_predictions: int
    global_batch: int
    micro_batch: int
    steps: int
    schedule_steps: int
    learning_rate: float
    warmup: float

    @property
    def searching(self) -> bool:
        return self.name == "search"

    @property
    def phase(self) -> str:
        """The recipe's section that its numbers come from."""
        return "phase2" if self.name == "phase2" else "phase1"

    def learning_rate_at(self, step: int, schedule: str) -> float:
        """Learning rate of step 0, 1, ...: PolyWarmUp with degree 0.5, as NVIDIA's BERT has it, or continuous."""
        progress = (step + 1) / self.schedule_steps
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        decay = math.sqrt(max(0.0, 1.0 - progress))
        if schedule == "poly_continuous":
            decay /= math.sqrt(1.0 - self.warmup)
        return self.learning_rate * decay


def model_config(recipe: Recipe, vocab_size: int, next_sentence: bool, pad_token_id: int = 0) -> EarlyBertConfig:
    """Configuration of the full network."""
    model = recipe.model
    return EarlyBertConfig(
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


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe's plan."""
    stages: list[Stage] = []
    for name in recipe.plan:
        if name == "narrow":
            continue
        phase = recipe.phase(name)
        narrow = "narrow" in recipe.plan and name != "search"
        begin: Begin = "initial"
        if narrow and not any(stage.narrow for stage in stages):
            begin = "narrow"
        elif stages:
            begin = "lengthen"
        steps = budgeted_steps(phase.steps, recipe.narrow.step_factor) if narrow else phase.steps
        stages.append(
            Stage(
                name=name,
                begin=begin,
                narrow=narrow,
                length=phase.length,
                max_predictions=phase.max_predictions,
                global_batch=phase.global_batch,
                micro_batch=phase.micro_batch,
                steps=recipe.search.steps if name == "search" else steps,
                schedule_steps=phase.steps if name == "search" else steps,
                learning_rate=phase.learning_rate,
                warmup=phase.warmup,
            )
        )
    return stages


def stage_model(full: EarlyBertConfig, stage: Stage, ticket: Ticket | None) -> EarlyBertConfig:
    """Configuration of the network that a stage trains."""
    if stage.narrow:
        if ticket is None:
            raise ValueError(f"stage {stage.name} is narrow and needs a ticket")
        return narrow_config(full, ticket)
    config = full.__class__.from_dict(full.to_dict())
    config.searching = stage.searching
    return config


def stage_flops(config: EarlyBertConfig, stage: Stage) -> float:
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


def describe_plan(recipe: Recipe, full: EarlyBertConfig, ticket: Ticket | None = None) -> dict[str, Any]:
    """Content of plan.json: per stage all its numbers, tokens, parameters and operations.

    Before a ticket is drawn its counts are already known, and with them parameters and operations: both depend on the
    number of units only, not on which ones.
    """
    stages = build_stages(recipe)
    counts = ticket or random_ticket(full_shape(full), recipe.draw, seed=0)
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
    dense = [
        dataclasses.replace(stage, steps=recipe.phase(stage.name).steps) for stage in stages if not stage.searching
    ]
    dense_flops = sum(stage.steps * stage_flops(full, stage) for stage in dense)
    return {
        "plan": recipe.plan,
        "schedule": recipe.schedule,
        "stages": described,
        "flops": sum(stage["flops"] for stage in described),
        "dense_parameters": count_parameters(full),
        "dense_flops": dense_flops,
    }
