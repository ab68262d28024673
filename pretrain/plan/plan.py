"""The plan: the stages of a recipe with their networks, and what each will cost."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.losses.registry import corpus_losses
from earlybert.pretrain.network.work import count_parameters, flops_per_sequence
from earlybert.pretrain.plan.grammar import PHASES
from earlybert.pretrain.plan.recipe import SHAPE, Recipe
from earlybert.pretrain.plan.stages import Stage, build_stages
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, Ratios, Ticket, TicketRule, full_shape


@dataclass(frozen=True)
class PlannedStage:
    """A stage, the network it trains, and the one that its border makes it from (`before`)."""

    stage: Stage
    before: NetworkConfig
    network: NetworkConfig
    # Whether a ticket has had a part in the network, though later borders may have given all units back.
    needs_ticket: bool

    @property
    def narrow(self) -> bool:
        """Whether units of the network are cut."""
        return self.network.kept_units is not None

    @cached_property
    def parameters(self) -> int:
        return count_parameters(self.network)

    @cached_property
    def flops_per_step(self) -> float:
        """Floating-point operations of one optimizer step, of full sequences."""
        network, stage = self.network, self.stage
        return stage.global_batch * flops_per_sequence(network, stage.length, stage.max_predictions)

    @property
    def flops(self) -> float:
        return self.stage.steps * self.flops_per_step

    @property
    def tokens(self) -> int:
        return self.stage.steps * self.stage.tokens_per_step

    def content(self) -> dict[str, Any]:
        """The stage in plan.json."""
        stage = self.stage
        schedule = stage.schedule
        return {
            "name": stage.name,
            "begin": stage.begin.word,
            "phase": stage.phase,
            "searching": stage.searching,
            "narrow": self.narrow,
            "layers": self.network.num_hidden_layers,
            "heads": sum(self.network.heads),
            "neurons": sum(self.network.neurons),
            "length": stage.length,
            "max_predictions": stage.max_predictions,
            "global_batch": stage.global_batch,
            "micro_batch": stage.micro_batch,
            "steps": stage.steps,
            "schedule_start": schedule.start,
            "schedule_steps": schedule.total,
            "learning_rate": schedule.peak,
            "warmup": schedule.warmup,
            "knots": schedule.knots,
            "tokens": self.tokens,
            "parameters": self.parameters,
            "flops_per_step": self.flops_per_step,
            "flops": self.flops,
        }


@dataclass(frozen=True)
class Plan:
    """A recipe's plan for the network `full`, which all networks in it are parts of.

    Before its ticket is drawn another one of equal counts stands in for it: parameters and operations depend on the
    number of units only, not on which ones. Such networks cannot be trained (`network`).
    """

    recipe: Recipe
    full: NetworkConfig
    ticket: Ticket | None = None

    @cached_property
    def stages(self) -> list[PlannedStage]:
        """A fold over the borders: each makes the next network out of the one before."""
        network, needs_ticket = self.full, False
        for border in self.recipe.plan_borders:
            network = border.first_network(network)
        planned = []
        for stage in build_stages(self.recipe):
            before, ticket = network, None
            if stage.begin.needs_ticket:
                needs_ticket = True
                rule = self.recipe.draw.rule
                ticket = self.ticket or random_ticket(full_shape(before), rule, seed=0, wider=self.wider_tickets(rule))
            network = stage.begin.network(before, self.full, ticket, stage.turn)
            trained = dataclasses.replace(network, searching=stage.searching)
            planned.append(PlannedStage(stage, before, trained, needs_ticket))
        return planned

    @property
    def is_dense(self) -> bool:
        """Whether the full network is trained from beginning to end, nothing cut, searched for or grown."""
        return all(planned.network == self.full for planned in self.stages)

    @cached_property
    def dense(self) -> list[PlannedStage]:
        """Training the full network in all phases of the plan; empty where it has only a search."""
        phases = [word for word in dict.fromkeys(self.recipe.plan) if word in PHASES]
        stages = build_stages(dataclasses.replace(self.recipe, plan=phases, grow=[]))
        return [PlannedStage(stage, self.full, self.full, needs_ticket=False) for stage in stages]

    @property
    def ticket_shape(self) -> FullShape:
        """Shape of the network that the plan's ticket is drawn from and cuts."""
        for planned in self.stages:
            if planned.stage.searching:
                return full_shape(planned.network)
            if planned.stage.begin.needs_ticket:
                return full_shape(planned.before)
        return full_shape(self.full)

    def wider_tickets(self, rule: TicketRule) -> list[Ratios]:
        """Shares that stay cut in each of the wider tickets that one of this rule is widened to."""
        widen = self.recipe.widen
        return widen.wider_tickets(rule) if widen.word in self.recipe.plan else []

    def with_ticket(self, ticket: Ticket, name: str) -> "Plan":
        """The plan with this ticket; raises UserError, which calls it `name`, where it is for another network."""
        ticket.require_model(self.ticket_shape, name)
        found, wanted = [each.ratios for each in ticket.wider], self.wider_tickets(ticket.rule)
        if wanted and found != wanted:
            raise UserError(
                f"{name}: is drawn for widening to the ratios {found} of heads and neurons, but widen.to is "
                f"{self.recipe.widen.to}; draw a ticket with this widen.to"
            )
        return dataclasses.replace(self, ticket=ticket)

    def network(self, number: int) -> NetworkConfig:
        """What stage number 0, 1, ... trains; raises ValueError where that waits for the ticket."""
        planned = self.stages[number]
        if planned.needs_ticket and self.ticket is None:
            raise ValueError(f"stage {planned.stage.name} needs a ticket, and none is drawn yet")
        return planned.network

    @property
    def flops(self) -> float:
        return sum(planned.flops for planned in self.stages)

    @property
    def dense_flops(self) -> float:
        return sum(planned.flops for planned in self.dense)

    def content(self) -> dict[str, Any]:
        """plan.json."""
        return {
            "plan": self.recipe.plan,
            "schedule": self.recipe.schedule,
            "stages": [planned.content() for planned in self.stages],
            "flops": self.flops,
            "dense_parameters": count_parameters(self.full),
            "dense_flops": self.dense_flops,
        }


def unprepared_plan(recipe: Recipe) -> Plan:
    """The plan on the corpus that the recipe would prepare."""
    return Plan(recipe, full_network(recipe, recipe.corpus.vocab_size, recipe.corpus.objective))


def ticket_plan(recipe: Recipe) -> Plan:
    """The plan for whoever needs its tickets' shape alone, which depends neither on the corpus nor on the losses."""
    return unprepared_plan(dataclasses.replace(recipe, losses=[]))


def corpus_plan(recipe: Recipe, corpus: Corpus) -> Plan:
    """The plan on a prepared corpus."""
    full = full_network(recipe, corpus.vocab_size, corpus.objective, corpus.special_tokens.pad)
    return Plan(recipe, full)


def run_plan(run_dir: Path, recipe: Recipe, corpus: Corpus) -> Plan:
    """The plan of a run that has begun: with its ticket, once it has one. Raises UserError for a ticket of another."""
    plan, path = corpus_plan(recipe, corpus), run_dir / "ticket.json"
    return plan.with_ticket(Ticket.load(path), str(path)) if path.is_file() else plan


def full_network(recipe: Recipe, vocab_size: int, objective: str, pad_token_id: int = 0) -> NetworkConfig:
    """The recipe's network, all units of all layers, for a corpus with these facts.

    Raises UserError where a corpus of this objective has no labels for one of the recipe's losses.
    """
    model = recipe.model
    return NetworkConfig(
        vocab_size=vocab_size,
        **{theirs: getattr(model, ours) for ours, theirs in SHAPE.items()},
        hidden_dropout_prob=model.hidden_dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        initializer_range=model.initializer_range,
        losses=corpus_losses(recipe.losses, objective),
        pad_token_id=pad_token_id,
    )
