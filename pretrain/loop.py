"""Training one stage: steps, validation, recordings of the coefficients, checkpoints."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from earlybert.data_prep.corpus import Corpus
from earlybert.pretrain import checkpoint, distributed
from earlybert.pretrain.batches import StepBatches, StepLoader
from earlybert.pretrain.config import Recipe
from earlybert.pretrain.engine import StageEngine
from earlybert.pretrain.errors import UserError
from earlybert.pretrain.initial import derived_seed
from earlybert.pretrain.objective import penalty, score, step_share
from earlybert.pretrain.plan import Stage
from earlybert.pretrain.search import MaskHistory, Snapshot, save_snapshot
from earlybert.pretrain.telemetry import StageProgress, Telemetry


@dataclass
class Place:
    """Where a run is: the stage, the updates made in it, the samples consumed in it, the updates before it."""

    stage_index: int
    step: int = 0
    position: int = 0
    steps_before: int = 0
    finished: bool = False

    @property
    def global_step(self) -> int:
        return self.steps_before + self.step


@dataclass
class StageRun:
    """Everything that training one stage needs. Every rank holds its own, with the same `place`."""

    run_dir: Path
    recipe: Recipe
    stage: Stage
    place: Place
    engine: StageEngine
    corpus: Corpus
    telemetry: Telemetry
    device: torch.device
    ticket_sha256: str | None
    optimizer: dict[str, Any]

    def loader(self, split: str) -> StepLoader:
        global_batch, micro_batch = self.stage.global_batch, self.engine.micro_batch
        if split == "validation":
            global_batch = min(self.recipe.validation.samples, len(self.corpus.samples(split, self.stage.length)))
        return StepLoader(
            self.corpus,
            split,
            self.stage,
            self.recipe,
            global_batch=global_batch,
            micro_batch=micro_batch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )


def train_stage(run: StageRun) -> None:
    """Trains from `run.place` to the end of the stage, and leaves a checkpoint that says it is finished."""
    recipe, stage, place = run.recipe, run.stage, run.place
    validation_batches = run.loader("validation").load(0)
    history = MaskHistory(run.run_dir / "search", recipe.draw, recipe.search, place.step) if stage.searching else None
    if history is not None and not history.steps:
        record(run, history)
    progress = StageProgress(stage.name, stage.steps, place.step, enabled=run.telemetry.enabled)
    for batches, data_seconds in _prefetched(run.loader("train"), place.position, stage.global_batch):
        metrics = train_step(run, batches)
        place.position += stage.global_batch
        if not run.engine.engine.was_step_applied():
            continue  # fp16 overflow: the update is skipped and does not count
        place.step += 1
        settled = history is not None and place.step % recipe.search.snapshot_every == 0 and record(run, history)
        place.finished = settled or place.step == stage.steps
        if place.step % recipe.log_every == 0 or place.finished:
            run.telemetry.scalars("train", place.global_step, metrics | {"data_seconds": data_seconds})
        note = f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        progress.update(place.step, note)
        if place.step % recipe.validation.every == 0 or place.finished:
            run.telemetry.scalars("validation", place.global_step, validate(run, validation_batches))
        if place.finished and history is not None and history.steps[-1] != place.step:
            record(run, history)
        if place.step % recipe.checkpoint_every == 0 or place.finished:
            save_checkpoint(run)
        if place.finished:
            break
    progress.close()


def _prefetched(loader: StepLoader, position: int, stride: int) -> Iterator[tuple[StepBatches, float]]:
    """Steps from `position` on without end, each prepared while the one before trains; with the seconds waited."""
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(loader.load, position)
        while True:
            began = time.perf_counter()
            batches = upcoming.result()
            position += stride
            upcoming = executor.submit(loader.load, position)
            yield batches, time.perf_counter() - began


def train_step(run: StageRun, batches: StepBatches) -> dict[str, Any]:
    """One optimizer step over the global batch; returns what is logged of it, the same on every rank."""
    began = time.perf_counter()
    stage, recipe, engine = run.stage, run.recipe, run.engine
    counts = torch.tensor([batches.predictions, batches.sequences, batches.tokens], device=run.device)
    predictions, sequences, tokens = distributed.sum_over_ranks(counts).tolist()
    learning_rate = stage.learning_rate_at(run.place.step, recipe.schedule)
    engine.set_learning_rate(learning_rate)
    # DeepSpeed averages over micro-batches and ranks, where sums over the global batch are wanted.
    shares = len(batches.batches) * distributed.world_size()
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)
    l1 = 0.0
    engine.engine.train()
    for turn, batch in enumerate(batches.batches):
        batch = batch.to(run.device)
        torch.manual_seed(
            derived_seed(recipe.seed, "dropout", stage.name, run.place.position, distributed.rank(), turn)
        )
        output = engine.engine(**batch.model_inputs())
        scores = score(output, batch)
        loss = step_share(scores, predictions, sequences) * shares
        if stage.searching:
            # Averaged over all shares, so that the whole step adds it exactly once.
            l1_term = penalty(output, recipe.search.lambda_heads, recipe.search.lambda_neurons)
            loss = loss + l1_term
            l1 = float(l1_term.detach())
        engine.backward_and_step(loss)
        sums += scores.detached()
    metrics = _metrics(distributed.sum_over_ranks(sums).tolist(), predictions, sequences)
    gradient_norm = engine.gradient_norm()
    _require_finite("loss", metrics["loss"], run)
    _require_finite("gradient norm", gradient_norm, run)
    seconds = time.perf_counter() - began
    return {
        "stage": stage.name,
        "step": run.place.step + 1,
        **metrics,
        "l1": l1,
        "learning_rate": learning_rate,
        "gradient_norm": gradient_norm,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }


def _metrics(sums: list[float], predictions: int, sequences: int) -> dict[str, float]:
    masked_loss, masked_correct, next_sentence_loss, next_sentence_correct = sums
    return {
        "loss": masked_loss / predictions + next_sentence_loss / sequences,
        "masked_loss": masked_loss / predictions,
        "masked_accuracy": masked_correct / predictions,
        "next_sentence_loss": next_sentence_loss / sequences,
        "next_sentence_accuracy": next_sentence_correct / sequences,
    }


def _require_finite(name: str, value: float, run: StageRun) -> None:
    # Under fp16 the loss scale is looking for its level; an overflow skips the update instead.
    if math.isfinite(value) or run.engine.precision == "fp16":
        return
    phase = "phase2" if run.stage.name == "phase2" else "phase1"
    raise UserError(
        f"the {name} became {value} at step {run.place.step + 1} of {run.stage.name}, samples from position "
        f"{run.place.position} on; {phase}.learning_rate {run.stage.learning_rate:g} may be too high"
    )


@torch.no_grad()
def validate(run: StageRun, batches: StepBatches) -> dict[str, Any]:
    """Loss and accuracy on the held-out samples, always masked the same way."""
    run.engine.engine.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)
    for batch in batches.batches:
        batch = batch.to(run.device)
        sums += score(run.engine.engine(**batch.model_inputs()), batch).detached()
    counts = torch.tensor([batches.predictions, batches.sequences], dtype=torch.float64, device=run.device)
    totals = distributed.sum_over_ranks(torch.cat((sums, counts))).tolist()
    metrics = _metrics(totals[:4], int(totals[4]), int(totals[5]))
    return {"stage": run.stage.name, "step": run.place.step, **metrics}


def record(run: StageRun, history: MaskHistory) -> bool:
    """Gathers and stores the coefficient masters; returns whether the masks have settled. All ranks must call it."""
    snapshot = Snapshot.from_masters(run.place.step, run.engine.gather("coefficients"))
    history.add(snapshot)
    if distributed.rank() == 0:
        save_snapshot(history.folder, snapshot)
        history.save()
    step = run.place.global_step
    for kind, values in (("heads", snapshot.heads_LU), ("neurons", snapshot.neurons_LU)):
        run.telemetry.histogram(f"coefficients/{kind}", torch.from_numpy(values), step)
    if len(history.steps) > 1:
        distances = {kind: found[-1] for kind, found in history.newest_distances().items()}
        run.telemetry.scalars("mask_distance", step, {"stage": run.stage.name, "step": run.place.step, **distances})
    return history.settled()


def save_checkpoint(run: StageRun) -> None:
    """Writes the canonical checkpoint of where the run is. All ranks must call it."""
    place = run.place
    state = {
        "stage": run.stage.name,
        "stage_index": place.stage_index,
        "step": place.step,
        "global_step": place.global_step,
        "position": place.position,
        "steps_before": place.steps_before,
        "finished": place.finished,
        "optimizer_step": run.engine.optimizer_step(),
        "loss_scale": run.engine.loss_scale_state(),
        "ticket_sha256": run.ticket_sha256,
        "corpus": run.corpus.fingerprint,
        "optimizer": run.optimizer,
    }
    checkpoint.save(run.run_dir / "checkpoints", run.engine, state, run.recipe.keep_checkpoints)
