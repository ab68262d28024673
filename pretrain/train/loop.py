"""Training one stage: steps, validation, recordings of a search, checkpoints."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from earlybert.core import distributed, ranks
from earlybert.core.progress import StageProgress, say
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.checkpoint.writer import CheckpointWriter
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage
from earlybert.pretrain.ticket.rankings import Ranking
from earlybert.pretrain.ticket.search import MaskHistory
from earlybert.pretrain.train import health, sanity
from earlybert.pretrain.train.batches import StepBatches, StepLoader, stage_loader
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.feeding import prefetched_steps
from earlybert.pretrain.train.plateau import Level, level
from earlybert.pretrain.train.recording import SearchRecorder
from earlybert.pretrain.train.saving import StageCheckpoints
from earlybert.pretrain.train.step import train_step, validate
from earlybert.pretrain.train.stopping import StopRequest
from earlybert.pretrain.train.telemetry import Telemetry

# A network has hundreds of trust ratios, and a curve of them needs no more points than this.
STEPS_PER_TRUST_RATIOS = 50


def train_stage(
    engine: StageEngine,
    state: RunState,
    stage: Stage,
    recipe: Recipe,
    corpus: Corpus,
    *,
    ranking: Ranking,
    search_folder: Path,
    telemetry: Telemetry,
    writer: CheckpointWriter,
    stop: StopRequest,
) -> None:
    """Trains from where `state` is to the end of the stage, and leaves a checkpoint that says it is finished.

    `ranking` is a search's. When the run is asked to stop before, `state` and the checkpoint say where it is.
    """
    sanity.check_state(engine)
    times, checkpoints = engine.times, StageCheckpoints(writer, engine, state, ranking)
    recorder = begin_recording(search_folder, recipe, ranking, engine, telemetry, state) if stage.searching else None
    loader = stage_loader(corpus, "train", stage, recipe, engine.micro_batch)
    validation = stage_loader(corpus, "validation", stage, recipe, engine.micro_batch).load(0).kept()
    skipped = 0
    reached: Level | None = None
    with (
        StageProgress(stage.name, stage.steps, state.step, enabled=telemetry.enabled) as progress,
        closing(prefetched_steps(loader, state.position, recipe.loader_workers)) as steps,
    ):
        for batches in times.waiting_for_data(steps):
            if at_step_border(stop, checkpoints):
                break
            with times.step(state.step):
                metrics = train_step(engine, batches, stage, recipe, state.step)
            skipped = skipped_updates(skipped, metrics, loader, checkpoints)
            state.position += stage.global_batch
            if recorder is not None:
                recorder.after_step(updated=not skipped)
            if skipped:
                continue  # fp16 overflow: the update is skipped and does not count
            state.step += 1
            agree = recorder is not None and state.step % recipe.search.snapshot_every == 0 and recorder.record()
            scores = scored(engine, validation) if agree else None
            stops = scores is not None and past_guessing(scores, recipe, corpus)
            state.finished = stops or state.step == stage.steps
            if state.step % recipe.log_every == 0 or state.finished:
                log_step(telemetry, engine, state, recipe, metrics)
            progress.update(state.step, f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s")
            if scores is not None or state.step % recipe.validation.every == 0 or state.finished:
                scores = scores or scored(engine, validation)
                reached = log_validation(telemetry, scores, state, corpus, reached)
            if state.finished:
                break
            if state.step % recipe.checkpoint_every == 0:
                with times.waiting("checkpoint"):
                    checkpoints.begin()
    if state.finished and recorder is not None:
        recorder.finish()
    checkpoints.require()


def skipped_updates(before: int, metrics: Mapping[str, Any], loader: StepLoader, checkpoints: StageCheckpoints) -> int:
    """Updates in a row that were not finite and so not made, the last step's included; all ranks must call it.

    Raises UserError where that step must end the run.
    """
    engine, recipe = checkpoints.engine, loader.recipe
    skipped = 0 if engine.updated() else before + 1
    if (problem := health.problem(engine, metrics, skipped, recipe.max_skipped_updates)) is not None:
        checkpoints.settle()
        raise health.failure(problem, engine, loader, checkpoints.state.position, loader.stage, recipe)
    return skipped


def begin_recording(
    folder: Path, recipe: Recipe, ranking: Ranking, engine: StageEngine, telemetry: Telemetry, state: RunState
) -> SearchRecorder:
    """Goes on with what an interrupted search recorded up to its checkpoint; one that starts afresh records afresh."""
    history = MaskHistory(folder, recipe.draw.rule, recipe.search, up_to_step=state.step or -1)
    recorder = SearchRecorder(history, ranking, engine, telemetry, state)
    if not history.steps:
        recorder.record()
    return recorder


def scored(engine: StageEngine, validation: StepBatches) -> dict[str, float]:
    """The scores on held-out text; all ranks must call it."""
    with engine.times.waiting("validation"):
        return validate(engine, validation)


def past_guessing(scores: Mapping[str, float], recipe: Recipe, corpus: Corpus) -> bool:
    """Whether the network is so far below guessing by word frequencies that masks that agree may stop the search.

    Before, coefficients have seen nothing that units could differ in.
    """
    needed = recipe.search.stop_nats
    return needed == 0 or bool(corpus.manifest["unigram_cross_entropy"] - scores["masked_loss"] >= needed)


def at_step_border(stop: StopRequest, checkpoints: StageCheckpoints) -> bool:
    """What the ranks settle between two steps, by one all-reduce. Returns whether any of them was asked to stop."""
    stopping, writing = distributed.on_any_rank(stop.signal is not None, checkpoints.writer.busy)
    if checkpoints.writer.in_flight and not writing:
        with checkpoints.engine.times.waiting("checkpoint"):
            checkpoints.settle()
    return stopping


def log_validation(
    telemetry: Telemetry, scores: Mapping[str, float], state: RunState, corpus: Corpus, before: Level | None
) -> Level | None:
    """The scores, and where the network is on its way past word frequencies: returned, and said where it has changed.

    The trackers get a curve of that.
    """
    telemetry.scalars("validation", state.global_step, {"stage": state.stage, "step": state.step, **scores})
    if (loss := scores.get("masked_loss")) is None:
        return None
    frequencies = corpus.manifest["unigram_cross_entropy"]
    telemetry.tracked_scalars("validation", state.global_step, {"masked_nats_below_frequencies": frequencies - loss})
    reached = level(loss, frequencies)
    if reached != before:
        values = f"validation loss {loss:.3f} nats, guessing by frequency {frequencies:.3f}"
        say(f"masked tokens are {reached} in step {state.step} of {state.stage} ({values})", enabled=telemetry.enabled)
    return reached


def log_step(
    telemetry: Telemetry, engine: StageEngine, state: RunState, recipe: Recipe, metrics: dict[str, Any]
) -> None:
    """The line of a step, now and then LAMB's trust ratios, and where the time went since that was last written."""
    telemetry.scalars("train", state.global_step, metrics, untracked=meaningless(engine, recipe))
    if state.finished or state.step % STEPS_PER_TRUST_RATIOS < recipe.log_every:
        telemetry.tracked_scalars("trust_ratio", state.global_step, engine.trust_ratios())
    if (means := engine.times.taken()) is not None:
        times = {"stage": state.stage, "step": state.step, **means}
        alone = ranks.world_size() == 1
        telemetry.scalars("time", state.global_step, times, untracked=["communication"] if alone else [])


def meaningless(engine: StageEngine, recipe: Recipe) -> list[str]:
    """Numbers of a step that say nothing in this stage: a line of them would be 0 or 1, or that of another one."""
    config = engine.config
    full = config.kept_units is None and config.num_hidden_layers == recipe.model.num_layers
    absent = {
        "l1": not config.searching,
        "loss_scale": engine.precision != "fp16",
        "dense_equivalent_utilisation": full,
    }
    return [name for name, is_absent in absent.items() if is_absent]
