"""Runs of the Hugging Face Trainer: AdamW, linear decay, checkpoints, and the search's L1 term."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from earlybert.core.devices import device_type
from earlybert.core.distributed import gather_objects
from earlybert.core.errors import UserError
from earlybert.core.files import read_json
from earlybert.core.progress import StageProgress
from earlybert.core.ranks import rank, world_size
from earlybert.finetune.checkpoints import KEPT, CloseCheckpoints, newest_checkpoint
from earlybert.finetune.config import TaskSettings
from earlybert.finetune.cost import Cost, StepClock
from earlybert.finetune.recording import Recorder
from earlybert.finetune.text import Features, Masker, learnt, length, with_nothing_to_learn
from earlybert.pretrain.cost.hardware import device_precision
from earlybert.pretrain.train.stopping import StopRequest

Collate = Callable[[list[Any]], dict[str, Any]]

# Signals are sent to the process, so one object remembers them.
STOP = StopRequest()


class Stopped(Exception):
    """A run was asked to stop before its end, and has left a checkpoint; the text says where."""


class Diverged(UserError):
    """A training came out with a network that is of no use."""

    def __init__(self, learning_rate: float, what: str) -> None:
        super().__init__(
            f"learning rate {learning_rate:g} is too high: {what} are not numbers; give a lower one, and another --out"
        )


@dataclass(frozen=True)
class TrainerRun:
    """One run of the Trainer: a search, or the training that follows.

    The learning-rate curve is that of `epochs`, even where it stops after `stop_after`. `folder` is the result's, which
    its runs share.
    """

    name: str
    folder: Path
    epochs: float
    learning_rate: float
    seed: int
    stop_after: int | None = None

    @property
    def checkpoints(self) -> Path:
        """Needed only until there is a result."""
        return self.folder / "checkpoints" / self.name

    @property
    def curves(self) -> Path:
        return self.folder / "tensorboard" / self.name


def updates(examples: int, settings: TaskSettings, epochs: float) -> int:
    """Updates in so many passes over the data."""
    return math.ceil(epochs * math.ceil(examples / settings.batch_size))


def draw_step(examples: int, settings: TaskSettings) -> int:
    """The update after which the ticket is drawn: search_epochs of the data, rounded half up, at least one."""
    return max(1, math.floor(settings.search_epochs * examples / settings.batch_size + 0.5))


@lru_cache(maxsize=1)
def order(seed: int, epoch: int, examples: int) -> list[int]:
    """In which order an epoch takes its examples; the one that accelerate's sampler gives."""
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


class TimedTrainer(Trainer):
    """Makes the loss that of the whole update, adds the L1 term to it, and has every update timed and ranked by."""

    def __init__(
        self,
        settings: TaskSettings,
        total: int,
        rows: list[Features],
        masking: Masker | None,
        recorder: Recorder | None,
        **others: Any,
    ) -> None:
        super().__init__(train_dataset=rows, **others)
        self.settings, self.total, self.rows, self.masking, self.recorder = settings, total, rows, masking, recorder
        # So the Trainer leaves dividing the loss to the model.
        self.model_accepts_loss_kwargs = True

    @property
    def clock(self) -> StepClock:
        """The one that is listening: resuming puts another one in the place of the first."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, StepClock))

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        self.clock.forward_begins(self.args.device)
        loss = super().training_step(*arguments, **keywords)
        self.clock.backward_ends()
        if self.recorder and self.accelerator.sync_gradients:
            assert self.model is not None
            scaler = self.accelerator.scaler
            self.recorder.after_backward(self.model, scaler.get_scale() if scaler else 1.0)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """This rank's micro-batches of the next update, and how much there is to learn in it on all ranks.

        Examples and masks are a pure function of seed and update, so no layout can change them, and the Trainer's own
        loader only counts micro-batches. Sorted by length, neighbours in a micro-batch need little padding where
        attention computes them as a block; dealt out in turn, all micro-batches have about as many tokens. All ranks
        must make equally many: where an epoch's last update has too few examples, some ranks get one with nothing to
        learn.
        """
        size = self.settings.batch_size
        epoch, update = divmod(self.state.global_step, updates(len(self.rows), self.settings, 1))
        indices = order(self.args.seed, epoch, len(self.rows))[update * size :][:size]
        rows = [self.rows[index] for index in indices]
        if self.masking:
            rows = [self.masking(row, epoch, index) for row, index in zip(rows, indices, strict=True)]
        rows.sort(key=length)
        turns = world_size() * num_batches
        own = range(turns)[rank() * num_batches :][:num_batches]
        batches: list[list[Any]] = [rows[turn::turns] or [with_nothing_to_learn(rows[0])] for turn in own]
        prepared: Any = [self._prepare_inputs(self.data_collator(batch)) for batch in batches]
        return prepared, torch.tensor(sum(map(learnt, rows)), device=device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Task loss plus lambda * sum|c| (EarlyBERT Eq. 4).

        The sum of the task's losses is divided by what the update has on all ranks. The L1 term is of no example: each
        micro-batch adds its part, so it counts once per update.
        """
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        if output.head_penalty is not None:
            penalty = self.settings.lambda_heads * output.head_penalty
            penalty = penalty + self.settings.lambda_neurons * output.neuron_penalty
            loss = loss + penalty / self.current_gradient_accumulation_steps
        return (loss, output) if return_outputs else loss


class ProgressLines(TrainerCallback):
    """The project's own progress, with the time left."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.loss = ""
        self.predicted = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress = StageProgress(self.name, self.total, state.global_step, enabled=rank() == 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.update(state.global_step, self.loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.__exit__()

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        if not self.predicted:
            self.progress = StageProgress("predicting", len(eval_dataloader), 0, enabled=rank() == 0)
        self.predicted += 1
        self.progress.update(self.predicted, "")

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        self.progress.__exit__()
        self.predicted = 0


def asked_to_stop() -> bool:
    """Whether any rank was; all of them ask."""
    asked = STOP.signal is not None
    return any(gather_objects(asked)) if world_size() > 1 else asked


class StopAfter(TrainerCallback):
    """Ends the run early; what is trained up to then is the beginning of the full run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


class StopWhenAsked(TrainerCallback):
    """Ends the run after the update in which any rank was asked to, with a checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if asked_to_stop():
            control.should_save = control.should_training_stop = True


@dataclass(frozen=True)
class Layout:
    """How the work is laid out: where, in which precision, and how a batch is cut up on each rank."""

    device: torch.device
    precision: str
    micro_batch: int
    accumulation: int


def layout(settings: TaskSettings) -> Layout:
    """Raises UserError where batch, ranks, micro-batch and device do not go together."""
    device = torch.device(device_type())
    ranks = world_size()
    share, rest = divmod(settings.batch_size, ranks)
    if rest or not share:
        raise UserError(f"batch_size is {settings.batch_size}, which {ranks} ranks cannot share equally")
    micro = settings.micro_batch or share
    if share % micro:
        raise UserError(f"micro_batch is {micro}; it must divide the {share} sequences of each rank")
    return Layout(device, device_precision(settings.precision, device), micro, share // micro)


def trainer_arguments(checkpoints: Path, work: Layout, **own: Any) -> TrainingArguments:
    """What all runs of the Trainer have in common, and `own` of one of them. It is silent: `ProgressLines` speaks."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.accumulation,
        fp16=work.precision == "fp16",
        bf16=work.precision == "bf16",
        use_cpu=work.device.type == "cpu",
        save_strategy="steps",
        save_total_limit=KEPT,
        disable_tqdm=True,
        report_to=[],
        log_level="error",
        **own,
    )
    # One rank uses one GPU. The Trainer would take all that it sees, and give each of them a whole batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def run_arguments(settings: TaskSettings, run: TrainerRun) -> TrainingArguments:
    work = layout(settings)
    return trainer_arguments(
        run.checkpoints,
        work,
        per_device_eval_batch_size=2 * work.micro_batch,
        num_train_epochs=run.epochs,
        learning_rate=run.learning_rate,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adam_epsilon=settings.adam_eps,
        seed=run.seed,
        save_steps=settings.save_every,
        restore_callback_states_from_checkpoint=True,
        logging_steps=10,
        remove_unused_columns=False,
        dataloader_pin_memory=work.device.type == "cuda",
        ddp_find_unused_parameters=False,
    )


def make_trainer(
    model: PreTrainedModel,
    rows: list[Features],
    collate: Collate,
    settings: TaskSettings,
    run: TrainerRun,
    recorder: Recorder | None = None,
    masking: Masker | None = None,
) -> TimedTrainer:
    """The Trainer of one run; the recorder is a search's."""
    total = run.stop_after or updates(len(rows), settings, run.epochs)
    callbacks: list[TrainerCallback] = [StepClock(), ProgressLines(run.name, total), StopWhenAsked()]
    if recorder:
        callbacks.append(recorder)
    # After everyone who puts a file into a checkpoint.
    callbacks.append(CloseCheckpoints())
    if rank() == 0:
        callbacks.append(TensorBoardCallback(SummaryWriter(str(run.curves))))
    if run.stop_after:
        callbacks.append(StopAfter(run.stop_after))
    trainer = TimedTrainer(
        settings,
        total,
        rows,
        masking,
        recorder,
        model=model,
        args=run_arguments(settings, run),
        data_collator=collate,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: TimedTrainer) -> Cost:
    """Trains to the run's end, from its newest whole checkpoint where there is one; raises Stopped."""
    newest = newest_checkpoint(Path(str(trainer.args.output_dir)))
    state = read_json(newest / "trainer_state.json") if newest else {}
    if newest and state["global_step"] == trainer.total:
        # Only what comes after the last update is missing, and the Trainer would make another update.
        trainer.model.load_state_dict(load_file(newest / "model.safetensors"))  # type: ignore[union-attr]
        vars(trainer.clock).update(state["stateful_callbacks"][StepClock.__name__]["attributes"])
    else:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        if trainer.state.global_step < trainer.total:
            raise Stopped(f"step {trainer.state.global_step} of {trainer.total} in {trainer.args.output_dir}")
    return trainer.clock.cost()


def predictions(trainer: Trainer, rows: list[Features]) -> tuple[NDArray[np.float32], ...]:
    """The network's scores for rows without labels: one array, or one for starts and one for ends.

    They are computed in the order of lengths, the longest first. Raises Diverged where one is not a number.
    """
    longest_first = sorted(range(len(rows)), key=lambda index: -length(rows[index]))
    logits = trainer.predict([rows[index] for index in longest_first]).predictions  # type: ignore[arg-type]
    arrays = logits if isinstance(logits, tuple) else (logits,)
    if any(np.isnan(array).any() for array in arrays):
        raise Diverged(trainer.args.learning_rate, "after training the network's scores")
    places = np.argsort(longest_first)
    return tuple(array[places] for array in arrays)
