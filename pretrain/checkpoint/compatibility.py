"""Whether a checkpoint is one of this run: its plan, corpus, ticket and network; whether that may go on from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.plan.plan import Plan, PlannedStage
from earlybert.pretrain.ticket.ticket import Ticket


def stage_of(checkpoint: Checkpoint, plan: Plan, corpus: Corpus) -> PlannedStage:
    """The stage of the plan that the checkpoint was written in; raises UserError where plan or corpus are others."""
    path, index, name = checkpoint.path, checkpoint.state.stage_index, checkpoint.state.stage
    if index not in range(len(plan.stages)) or plan.stages[index].stage.name != name:
        raise UserError(f"{path}: is of stage {index}, {name}, which the run's plan does not have")
    if checkpoint.state.corpus != corpus.fingerprint:
        raise UserError(f"{corpus.directory}: is not the corpus that {path} was trained on")
    return plan.stages[index]


def run_ticket(run_dir: Path, checkpoint: Checkpoint) -> Ticket:
    """The run's ticket, which a checkpoint was trained from; raises UserError for another one."""
    path = run_dir / "ticket.json"
    if not path.is_file():
        raise UserError(f"{path}: is missing; {checkpoint.path} was trained from it")
    ticket = Ticket.load(path)
    if checkpoint.state.ticket_sha256 != ticket.sha256:
        raise UserError(f"{checkpoint.path}: was trained from another ticket than {path}")
    return ticket


def require_run_checkpoint(checkpoint: Checkpoint, run_dir: Path, plan: Plan, corpus: Corpus) -> Plan:
    """Raises UserError unless the checkpoint is one of this run; returns the plan with the ticket that it needs."""
    planned = stage_of(checkpoint, plan, corpus)
    if planned.needs_ticket:
        plan = plan.with_ticket(run_ticket(run_dir, checkpoint), str(run_dir / "ticket.json"))
    shapes = parameter_shapes(plan.network(checkpoint.state.stage_index))
    by_importance = planned.stage.searching and plan.recipe.draw.ranking == "importance"
    checkpoint.require_parameters(shapes, importance=by_importance)
    return plan


def require_same_training(
    checkpoint: Checkpoint, file: Path, optimizer: Mapping[str, Any], initial: str | None, initial_sha256: str | None
) -> None:
    """Raises UserError where a run is asked to go on with another optimizer, or began with other weights.

    `file` is the DeepSpeed file that asks for the optimizer, `initial` the recipe's, with the SHA-256 of its weights.
    """
    if checkpoint.state.optimizer != optimizer:
        raise UserError(
            f"{file}: asks for {optimizer}, but {checkpoint.path} was trained with {checkpoint.state.optimizer}; a run "
            "keeps its optimizer"
        )
    if checkpoint.state.initial_sha256 != initial_sha256:
        raise UserError(
            f"initial is {initial}, but {checkpoint.path} began with other weights; a run keeps those that it began "
            "with"
        )
