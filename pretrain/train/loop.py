"""Training one stage: steps, validation, recordings of the coefficients, checkpoints."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earlybert.core import distributed, ranks
from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.core.randomness import derived_seed
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.writer import CheckpointWriter
from earlybert.pretrain.network.config import NetworkConfig, dense_config
from earlybert.pretrain.network.depth import at_depth
from earlybert.pretrain.network.parameters import is_coefficient
from earlybert.pretrain.network.work import Work, training_flops
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage
from earlybert.pretrain.ticket.search import MaskHistory, Snapshot
from earlybert.pretrain.train import sanity
from earlybert.pretrain.train.batches import StepBatches, StepLoader, prefetched_steps
from earlybert.pretrain.train.diagnosis import TensorWatch
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.objective import penalty, score, step_share
from earlybert.pretrain.train.stopping import StopRequest
from earlybert.pretrain.train.telemetry import StageProgress, Telemetry


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
    config: NetworkConfig
    engine: StageEngine
    corpus: Corpus
    telemetry: Telemetry
    checkpoints: CheckpointWriter
    stop: StopRequest
    device: torch.device
    ticket_sha256: str | None
    optimizer: dict[str, Any]

    @cached_property
    def dense_config(self) -> NetworkConfig:
        return at_depth(dense_config(self.config), self.recipe.model.num_layers)

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
            rank=ranks.rank(),
            world_size=ranks.world_size(),
            whole_words=self.recipe.whole_words,
            packed=self.recipe.packed_rows and split == "train",
        )


def train_stage(run: StageRun) -> bool:
    """Trains from `run.place` to the end of the stage, and leaves a checkpoint that says it is finished.

    Returns False when the run was asked to stop before: the checkpoint then says where it is.
    """
    recipe, stage, place = run.recipe, run.stage, run.place
    sanity.check_state(run.engine, run.config)
    # A search that starts afresh records afresh, whatever an interrupted one left.
    recorded = place.step or -1
    history = MaskHistory(run.run_dir / "search", recipe.draw, recipe.search, recorded) if stage.searching else None
    if history is not None and not history.steps:
        record(run, history)
    with StageProgress(stage.name, stage.steps, place.step, enabled=run.telemetry.enabled) as progress:
        train_steps(run, history, progress)
    return place.finished


def train_steps(run: StageRun, history: MaskHistory | None, progress: StageProgress) -> None:
    """Steps until the stage is finished or the run is asked to stop; either way a checkpoint says where it is."""
    recipe, stage, place, times = run.recipe, run.stage, run.place, run.engine.times
    validation_batches = run.loader("validation").load(0)
    skipped = 0
    for batches, data_seconds in prefetched_steps(run.loader("train"), place.position, recipe.loader_workers):
        if at_step_border(run):
            require_checkpoint(run)
            break
        times.waited("data", data_seconds)
        with times.step(place.step):
            metrics = train_step(run, batches)
        skipped = skipped + 1 if not run.engine.updated() else 0
        require_healthy(run, batches, metrics, skipped)
        place.position += stage.global_batch
        if skipped:
            continue  # fp16 overflow: the update is skipped and does not count
        place.step += 1
        settled = history is not None and place.step % recipe.search.snapshot_every == 0 and record(run, history)
        place.finished = settled or place.step == stage.steps
        if place.step % recipe.log_every == 0 or place.finished:
            run.telemetry.scalars("train", place.global_step, metrics | {"data_seconds": data_seconds})
            run.telemetry.board_scalars("trust_ratio", place.global_step, run.engine.trust_ratios())
            if (means := times.taken()) is not None:
                run.telemetry.scalars("time", place.global_step, {"stage": stage.name, "step": place.step, **means})
        note = f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        progress.update(place.step, note)
        if place.step % recipe.validation.every == 0 or place.finished:
            with times.waiting("validation"):
                found = validate(run, validation_batches)
            run.telemetry.scalars("validation", place.global_step, found)
        if place.finished and history is not None:
            finish_recording(run, history)
        if place.finished:
            require_checkpoint(run)
            break
        if place.step % recipe.checkpoint_every == 0:
            with times.waiting("checkpoint"):
                save_checkpoint(run)


def at_step_border(run: StageRun) -> bool:
    """What the ranks settle between two steps, by one all-reduce. Returns whether any of them was asked to stop."""
    stop, writing = distributed.on_any_rank(run.stop.signal is not None, run.checkpoints.busy)
    if run.checkpoints.in_flight and not writing:
        with run.engine.times.waiting("checkpoint"):
            settle_checkpoint(run)
    return stop


def train_step(run: StageRun, batches: StepBatches) -> dict[str, Any]:
    """One optimizer step over the global batch; returns what is logged of it.

    Utilisation is the share of the ranks' peak that the work on real tokens makes use of; the dense-equivalent one
    counts what the full network would have had to do for the same batch.
    """
    began = time.perf_counter()
    predictions, sequences, work = global_counts(run, batches)
    learning_rate = run.stage.learning_rate_at(run.place.step, run.recipe.schedule)
    run.engine.set_learning_rate(learning_rate)
    sums, l1 = forward_and_backward(run, batches, predictions, sequences)
    metrics = _metrics(distributed.sum_over_ranks(sums).tolist(), predictions, sequences)
    seconds = time.perf_counter() - began
    peak = run.engine.peak_flops * ranks.world_size()
    return {
        "stage": run.stage.name,
        "step": run.place.step + 1,
        **metrics,
        "l1": l1,
        "learning_rate": learning_rate,
        "gradient_norm": run.engine.gradient_norm(),
        "loss_scale": run.engine.loss_scale(),
        "tokens_per_second": work.tokens / seconds,
        "utilisation": training_flops(run.config, work) / seconds / peak,
        "dense_equivalent_utilisation": training_flops(run.dense_config, work) / seconds / peak,
        "seconds": seconds,
    }


def global_counts(run: StageRun, batches: StepBatches) -> tuple[int, int, Work]:
    """Predictions, sequences and work of the step over all ranks."""
    counts = torch.tensor([batches.sequences, *vars(batches.work).values()], device=run.device)
    sequences, *work = distributed.sum_over_ranks(counts).tolist()
    total = Work(*work)
    return total.predictions, sequences, total


def forward_and_backward(
    run: StageRun, batches: StepBatches, predictions: int, sequences: int, watch: TensorWatch | None = None
) -> tuple[Tensor, float]:
    """All micro-batches of a step, and the update; the counts are those of the global batch.

    Returns this rank's sums of the scores (`Scores.detached`), and the L1 term.
    """
    stage, recipe, engine = run.stage, run.recipe, run.engine
    # DeepSpeed averages over micro-batches and ranks, where sums over the global batch are wanted.
    shares = len(batches.batches) * ranks.world_size()
    sums = torch.zeros(4, dtype=torch.float64, device=run.device)
    l1 = 0.0
    engine.engine.train()
    for turn, batch in enumerate(batches.batches):
        if watch is not None:
            watch.micro_batch = turn
        batch = batch.to(run.device)
        torch.manual_seed(derived_seed(recipe.seed, "dropout", stage.name, run.place.position, ranks.rank(), turn))
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
    return sums, l1


def _metrics(sums: list[float], predictions: int, sequences: int) -> dict[str, float]:
    masked_loss, masked_correct, next_sentence_loss, next_sentence_correct = sums
    return {
        "loss": masked_loss / predictions + next_sentence_loss / sequences,
        "masked_loss": masked_loss / predictions,
        "masked_accuracy": masked_correct / predictions,
        "next_sentence_loss": next_sentence_loss / sequences,
        "next_sentence_accuracy": next_sentence_correct / sequences,
    }


def require_healthy(run: StageRun, batches: StepBatches, metrics: dict[str, Any], skipped: int) -> None:
    """Raises UserError when the step's loss or gradient is not finite, or the loss exploded.

    Under fp16 the loss scale looks for its level by overflowing now and then: only `max_skipped_updates` in a row are
    too many. An update that is not finite is never made, so the step can be computed again, watching every tensor.
    """
    found = sanity.symptom(metrics, run.config)
    if found is None or (run.engine.precision == "fp16" and 0 < skipped < run.recipe.max_skipped_updates):
        return
    if run.checkpoints.in_flight:
        settle_checkpoint(run)
    with TensorWatch(run.engine.engine.module) as watch:
        predictions, sequences, _ = global_counts(run, batches)
        forward_and_backward(run, batches, predictions, sequences, watch)
    finding = watch.finding
    assert finding is not None
    samples = run.loader("train").sample_indices(run.place.position, finding.micro_batch)
    findings = distributed.gather_objects((finding, samples))
    rank, (finding, samples) = min(enumerate(findings), key=lambda each: (each[1][0].finite, -each[1][0].largest))
    after = f" after {skipped} skipped updates in a row" if run.engine.precision == "fp16" else ""
    indices = ", ".join(map(str, samples))
    raise UserError(
        f"{found}{after} at step {metrics['step']} of {run.stage.name}; {finding}, in micro-batch "
        f"{finding.micro_batch} of rank {rank}, samples {indices}; {run.stage.phase}.learning_rate "
        f"{run.stage.learning_rate:g} may be too high"
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
    snapshot = Snapshot.from_masters(run.place.step, run.engine.gather(is_coefficient))
    history.add(snapshot)
    if ranks.rank() == 0:
        try:
            history.save()
        except OSError as error:
            say(f"a recording of the coefficients could not be written ({error}); it is tried again with the next one")
    step = run.place.global_step
    for kind, values in (("heads", snapshot.heads_LU), ("neurons", snapshot.neurons_LU)):
        run.telemetry.histogram(f"coefficients/{kind}", torch.from_numpy(values), step)
    if len(history.steps) > 1:
        run.telemetry.mask_distances(history.steps, history.matrices(), step)
        distances = {kind: found[-1] for kind, found in history.newest_distances().items()}
        run.telemetry.scalars("mask_distance", step, {"stage": run.stage.name, "step": run.place.step, **distances})
    return history.settled()


def finish_recording(run: StageRun, history: MaskHistory) -> None:
    """Makes sure that what the ticket is drawn from is on disk, before a checkpoint says that the search is over."""
    if history.steps[-1] != run.place.step:
        record(run, history)
    distributed.on_rank_0(history.save)


def save_checkpoint(run: StageRun) -> None:
    """Begins to write the canonical checkpoint of where the run is. All ranks must call it."""
    if run.checkpoints.in_flight:
        settle_checkpoint(run)
    sanity.check_state(run.engine, run.config)
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
    run.checkpoints.begin(run.engine.layout, run.engine.optimizer, state)


def settle_checkpoint(run: StageRun) -> None:
    """Completes the checkpoint in flight, or says once that there is none and goes on."""
    failure = run.checkpoints.settle()
    if failure is not None and ranks.rank() == 0:
        say(f"a checkpoint could not be written ({failure}); training goes on, the next one is due as ever")


def require_checkpoint(run: StageRun) -> None:
    """Sees to a complete checkpoint of where the run is, without which it cannot go on; raises UserError."""
    if run.checkpoints.in_flight:
        settle_checkpoint(run)
    if run.checkpoints.newest_step == run.place.global_step and not run.place.finished:
        return
    save_checkpoint(run)
    if (failure := run.checkpoints.settle()) is not None:
        raise UserError(
            f"{run.checkpoints.folder}: the checkpoint at step {run.place.step} of {run.stage.name} could not be "
            f"written ({failure}); make room, then start the run again: it goes on from the last complete one"
        )
