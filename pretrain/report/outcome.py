"""What came of a run: its plan, rebuilt from what the run keeps, and what each stage made of its part of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earlybert.pretrain.checkpoint.checkpoint import newest_intact
from earlybert.pretrain.checkpoint.metrics import BOOKKEEPING, Lines, of_kind
from earlybert.pretrain.network.config import NetworkConfig, without_coefficients
from earlybert.pretrain.network.losses.part import LossPart
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.work import count_parameters, time_saved
from earlybert.pretrain.plan.corpora import run_corpus
from earlybert.pretrain.plan.plan import Plan, PlannedStage, run_plan
from earlybert.pretrain.plan.recipe import load_recipe, run_config_path
from earlybert.pretrain.report.timeline import (
    TIME_PARTS,
    Interruptions,
    accelerator_hours,
    changed_layout,
    interruptions,
    last_layout,
    read_lines,
    running_seconds,
    sessions,
)
from earlybert.pretrain.ticket.ticket import narrow_config
from earlybert.pretrain.train.plateau import Level, level


@dataclass(frozen=True)
class Validation:
    """Losses and accuracies on held-out text after a stage's step, by the names that metrics.jsonl has for them."""

    stage: str
    step: int
    scores: Mapping[str, float]

    def content(self) -> dict[str, Any]:
        return {"stage": self.stage, "step": self.step, **self.scores}


@dataclass(frozen=True)
class StageOutcome:
    """What a stage did so far, and whether it is `over`.

    `steps` are the updates really made (a search may stop before its limit), `median_seconds` is of a logged step,
    waiting for data left out. `time_split` has mean seconds of a step by part, empty before the first sampled step.
    """

    planned: PlannedStage
    over: bool
    steps: int
    median_seconds: float | None
    validation: Validation | None
    time_split: Mapping[str, float]

    @property
    def name(self) -> str:
        return self.planned.stage.name


@dataclass(frozen=True)
class Savings:
    """What a plan saved against training the full network for all steps of its phases.

    `dense_stage` trains the full network on phase 1's batches, `trained_stage` is the one that ends phase 1;
    `step_time_ratio` is the latter's median step time over the former's. `time_saved` is the paper's formula;
    `by_the_clock` compares the whole running time with `dense_seconds` of nothing but steps; None before the run's end.
    """

    dense_stage: PlannedStage
    trained_stage: PlannedStage
    step_time_ratio: float
    time_saved: float
    dense_seconds: float
    by_the_clock: float | None


@dataclass(frozen=True)
class Outcome:
    """A run so far. Seconds are running time, without the time between sessions.

    `changed_layout` says what changed between its sessions so that times of its stages do not compare. `corpus` is the
    fingerprint of its corpus, `layout` what the time of a step depends on beside the plan, at its last start.
    """

    run_dir: Path
    plan: Plan
    corpus: str
    stages: Sequence[StageOutcome]
    finished: bool
    last_validation: Validation | None
    unigram_cross_entropy: float
    devices: Sequence[str]
    ranks: Sequence[int]
    layout: Mapping[str, Any]
    changed_layout: Sequence[str]
    seconds: float
    accelerator_hours: float
    interruptions: Interruptions
    savings: Savings | None

    @property
    def losses(self) -> tuple[LossPart, ...]:
        """The parts of the loss that is trained on."""
        return loss_parts(self.plan.full.losses)

    def guessing(self, part: LossPart) -> float:
        """Loss, in nats, of a network that knows nothing but how often each answer is right."""
        return part.guessing_by_frequency(self.plan.full, self.unigram_cross_entropy)

    def level(self, validation: Validation) -> Level | None:
        """Where the network was on the way past word frequencies; None where it predicts no masked tokens."""
        loss = validation.scores.get("masked_loss")
        return None if loss is None else level(loss, self.unigram_cross_entropy)

    @property
    def searched_too_soon(self) -> bool:
        """Whether a search ended at word frequencies: units differ little there, and its ticket says little."""
        ends = [stage.validation for stage in self.stages if stage.planned.stage.searching]
        return any(end is not None and self.level(end) == "at word frequencies" for end in ends)

    @property
    def network(self) -> NetworkConfig:
        """The network that the plan ends with, coefficients left out."""
        return without_coefficients(self.plan.stages[-1].network)

    @property
    def narrow(self) -> NetworkConfig | None:
        """The last network that was cut, or would be by the ticket that a search was for; None without a ticket."""
        cut = [planned.network for planned in self.plan.stages if planned.narrow]
        if self.plan.ticket is None:
            return None
        return cut[-1] if cut else narrow_config(self.network, self.plan.ticket)

    @property
    def ends_wide(self) -> bool:
        """Whether units that were cut are there again at the plan's end."""
        return any(planned.narrow for planned in self.plan.stages) and not self.plan.stages[-1].narrow

    @property
    def operations_saved(self) -> float | None:
        """Share of dense training's operations that the plan does without; None where there is nothing to compare."""
        return 1 - self.plan.flops / self.plan.dense_flops if self.plan.dense else None

    @property
    def conditions(self) -> tuple[object, ...]:
        """What two runs must have in common for their running times to compare."""
        dense = [planned.stage for planned in self.plan.dense]
        phases = [(stage.phase, stage.length, stage.global_batch, stage.steps) for stage in dense]
        return self.corpus, self.layout, self.plan.full, phases

    def content(self) -> dict[str, Any]:
        """report.json."""
        plan, stages, narrow = self.plan, self.stages, self.narrow
        content: dict[str, Any] = {
            "run_dir": str(self.run_dir),
            "finished": self.finished,
            "plan": plan.recipe.plan,
            "layers": {stage.name: stage.planned.network.num_hidden_layers for stage in stages},
            "steps": {stage.name: stage.steps for stage in stages},
            "validation": self.last_validation.content() if self.last_validation else None,
            "stage_validation": {stage.name: stage.validation.content() for stage in stages if stage.validation},
            "unigram_cross_entropy": self.unigram_cross_entropy,
            "dense": network_content(plan.full),
            "network": network_content(self.network),
            "flops": plan.flops,
            "dense_flops": plan.dense_flops,
            "median_step_seconds": {stage.name: stage.median_seconds for stage in stages},
            "devices": self.devices,
            "ranks": self.ranks,
            "seconds": self.seconds,
            "accelerator_hours": self.accelerator_hours,
            "interruptions": vars(self.interruptions),
            "time_split": {stage.name: stage.time_split for stage in stages if stage.time_split},
        }
        if narrow is not None and plan.ticket is not None:
            source = plan.ticket.source
            origin = {"ticket_sha256": plan.ticket.sha256, "ticket_source": source.kind}
            origin |= {"ticket_ranking": source.ranking} if source.ranking else {}
            content["narrow"] = network_content(narrow) | origin
        if (savings := self.savings) is not None:
            dense, trained = savings.dense_stage, savings.trained_stage
            content |= {
                "step_time_ratio": savings.step_time_ratio,
                "dense_stage": dense.stage.name,
                "flops_per_step": {"dense": dense.flops_per_step, "narrow": trained.flops_per_step},
                "time_saved": savings.time_saved,
                "dense_seconds_estimate": savings.dense_seconds,
                "time_saved_by_the_clock": savings.by_the_clock,
            }
        return content


def network_content(network: NetworkConfig) -> dict[str, Any]:
    """A network in report.json: how many parameters, and how many units in each layer."""
    return {"parameters": count_parameters(network), "heads": network.heads, "neurons": network.neurons}


def read_outcome(run_dir: Path) -> Outcome:
    """What the run directory says so far; raises UserError where that is no run."""
    recipe = load_recipe(run_config_path(run_dir), [])
    corpus = run_corpus(run_dir, recipe)
    plan = run_plan(run_dir, recipe, corpus)
    lines = read_lines(run_dir, loss_parts(plan.full.losses))
    seconds, finished = running_seconds(lines)[-1], is_finished(run_dir, len(plan.stages))
    stages = [stage_outcome(planned, lines, finished=finished) for planned in plan.stages]
    validations, spent = of_kind(lines, "validation"), sessions(lines)
    changed = changed_layout(lines)
    return Outcome(
        run_dir=run_dir,
        plan=plan,
        corpus=corpus.fingerprint,
        stages=stages,
        finished=finished,
        last_validation=validation(validations[-1]) if validations else None,
        unigram_cross_entropy=corpus.manifest["unigram_cross_entropy"],
        devices=sorted({session.device for session in spent}),
        ranks=sorted({session.ranks for session in spent}),
        layout=last_layout(lines),
        changed_layout=changed,
        seconds=seconds,
        accelerator_hours=accelerator_hours(spent),
        interruptions=interruptions(lines),
        savings=savings(plan, stages, seconds if finished else None) if not changed else None,
    )


def stage_outcome(planned: PlannedStage, lines: Lines, *, finished: bool = False) -> StageOutcome:
    """A stage's part of metrics.jsonl, of a run that may be finished.

    The first sampled step, warming up, is left out of the time split.
    """
    mine = [line for line in lines if line.get("stage") == planned.stage.name]
    train, validations, sampled = (of_kind(mine, kind) for kind in ("train", "validation", "time"))
    sampled = sampled[1:] or sampled
    # At a stage's end there is a validation; a search may end before its limit, and then another stage begins.
    at_limit = bool(validations) and validations[-1]["step"] == planned.stage.steps
    left = bool(mine) and next(line["stage"] for line in reversed(lines) if "stage" in line) != planned.stage.name
    return StageOutcome(
        planned=planned,
        over=finished or at_limit or left,
        steps=max((line["step"] for line in [*train, *validations]), default=0),
        median_seconds=statistics.median(line["seconds"] for line in train) if train else None,
        validation=validation(validations[-1]) if validations else None,
        time_split={part: statistics.fmean(line[part] for line in sampled) for part in TIME_PARTS} if sampled else {},
    )


def validation(line: Mapping[str, Any]) -> Validation:
    scores = {name: value for name, value in line.items() if name not in BOOKKEEPING}
    return Validation(line["stage"], line["step"], scores)


def is_finished(run_dir: Path, stages: int) -> bool:
    """Whether the last stage is trained to its end; checkpoints of a run that is done may have been cleared away."""
    if (run_dir / "DONE").is_file():
        return True
    # Who opens its network names the damaged ones.
    newest = newest_intact(run_dir / "checkpoints", warn=lambda _: None)
    return newest is not None and newest.state.finished and newest.state.stage_index == stages - 1


def savings(plan: Plan, stages: Sequence[StageOutcome], seconds: float | None) -> Savings | None:
    """Measured step-time ratio of phase 1, and the time saved: by the paper's formula, and by the clock.

    Work is counted in steps of phase 1, by the median times of the stages before phase 1's last; a step of phase 2
    weighs what its operations say, beside a step of phase 1 of the same training. The clock (`seconds` of a finished
    run) has everything that this run did (checkpoints, validation, restarts), the dense run it is compared with only
    steps. None where the plan is dense, has no stage of the full network in phase 1 or ends that phase with the search,
    or where one of its stages has no step.
    """
    first_phase = [stage for stage in stages if stage.planned.stage.phase == "phase1"]
    full = [stage for stage in first_phase if without_coefficients(stage.planned.network) == plan.full]
    medians = {stage.name: stage.median_seconds for stage in first_phase if stage.median_seconds}
    if not plan.recipe.plan_borders or not full or len(medians) < len(first_phase):
        return None
    dense, last = full[0], first_phase[-1]
    if last.planned.stage.searching:
        return None
    dense_step = medians[dense.name]
    before = sum(stage.steps * medians[stage.name] / dense_step for stage in first_phase if stage is not last)
    train, base = float(last.planned.stage.steps), float(plan.recipe.phase("phase1").steps)
    for stage in stages:
        if stage not in first_phase:
            train += stage.planned.flops_per_step / last.planned.flops_per_step * stage.planned.stage.steps
    dense_first, *others = plan.dense
    base += sum(other.flops / dense_first.flops_per_step for other in others)
    ratio = medians[last.name] / dense_step
    return Savings(
        dense_stage=dense.planned,
        trained_stage=last.planned,
        step_time_ratio=ratio,
        time_saved=time_saved(before, train, base, ratio),
        dense_seconds=base * dense_step,
        by_the_clock=None if seconds is None else 1 - seconds / (base * dense_step),
    )
