"""An arm of the race that is not ours: Hugging Face's `BertForMaskedLM`, its `Trainer` and AdamW, on the same samples.

    python benchmarks/race/hugging_face.py --config RECIPE --data CORPUS --run-dir RUN --seed 0 --learning_rate 1e-3
        [--FIELD VALUE ...]

Network, initial weights, optimizer and loop are Hugging Face's. Samples, their order and masks, the rate's curve below
its peak, AdamW's numbers, clipping, number of steps and precision are those of the recipe's dense run, and so is
validation.
The run directory is like that of our runs, as far as the race reads it; the same command resumes it.

Shape suffixes: B sequences, S positions, T tokens of all sequences, V vocabulary rows, N predicted tokens.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForMaskedLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from earlybert.core.devices import device_type
from earlybert.core.files import read_json, write_json, write_text
from earlybert.core.progress import StageProgress
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.finetune.checkpoints import CloseCheckpoints, newest_checkpoint
from earlybert.finetune.training import Layout, trainer_arguments
from earlybert.pretrain.cost.hardware import device_name, device_precision
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.work import flops_per_sequence
from earlybert.pretrain.plan.plan import corpus_plan
from earlybert.pretrain.plan.recipe import SHAPE, Recipe, load_recipe
from earlybert.pretrain.plan.stages import Stage, build_stages
from earlybert.pretrain.train.batches import StepBatches, stage_loader
from earlybert.pretrain.train.feeding import prefetched_steps
from earlybert.pretrain.train.stopping import StopRequest
from earlybert.pretrain.train.telemetry import Telemetry
from earlybert.pretrain.train.trackers.tensorboard import TensorBoard

LOOP = "Hugging Face"
NOT_PREDICTED = -100


@dataclass(frozen=True)
class Setting:
    """A run directory, the recipe whose phase 1 is trained in it, and on what."""

    run_dir: Path
    recipe: Recipe
    corpus: Corpus

    @staticmethod
    def of(run_dir: Path, recipe: Recipe) -> "Setting":
        assert recipe.data is not None
        return Setting(run_dir, recipe, Corpus.open(Path(recipe.data)))

    @property
    def stage(self) -> Stage:
        (stage,) = build_stages(self.recipe)
        return stage

    @property
    def micro_batch(self) -> int:
        size = self.stage.micro_batch
        return self.stage.global_batch if size == "auto" else size

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What `BertForMaskedLM` takes, [B, S] each, as Hugging Face's own collator would make it."""
        labels_T = torch.full_like(batch.input_ids_T, NOT_PREDICTED)
        labels_T[batch.needed_rows_M[batch.predicted_rows_N]] = batch.masked_labels_N
        padded = batch.padded(self.corpus.special_tokens.pad)
        labels_BS = torch.full_like(padded["input_ids"], NOT_PREDICTED)
        labels_BS[padded["attention_mask"].bool()] = labels_T
        return padded | {"labels": labels_BS}


def model_of(setting: Setting) -> BertForMaskedLM:
    """The recipe's full network with Hugging Face's initial weights."""
    shape = setting.recipe.model
    torch.manual_seed(setting.recipe.seed)
    config = BertConfig(
        vocab_size=setting.corpus.vocab_size,
        **{theirs: getattr(shape, ours) for ours, theirs in SHAPE.items()},
        hidden_dropout_prob=shape.hidden_dropout,
        attention_probs_dropout_prob=shape.attention_dropout,
        initializer_range=shape.initializer_range,
        pad_token_id=setting.corpus.special_tokens.pad,
    )
    return BertForMaskedLM(config)


def arguments(setting: Setting) -> TrainingArguments:
    """The Trainer's own defaults where the recipe has no number for them."""
    recipe, stage, device = setting.recipe, setting.stage, torch.device(device_type())
    micro_batches = -(-stage.global_batch // setting.micro_batch)
    return trainer_arguments(
        setting.run_dir / "checkpoints",
        Layout(device, device_precision(recipe.precision, device), setting.micro_batch, micro_batches),
        max_steps=stage.steps,
        learning_rate=stage.schedule.peak,
        weight_decay=recipe.optimizer.weight_decay,
        adam_beta1=recipe.optimizer.betas[0],
        adam_beta2=recipe.optimizer.betas[1],
        adam_epsilon=recipe.optimizer.eps,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        seed=recipe.seed,
        save_steps=recipe.checkpoint_every,
        # Which samples a step has depends on its number alone.
        ignore_data_skip=True,
        logging_strategy="no",
    )


class RaceTrainer(Trainer):
    """The Trainer, given the race's batches in place of those of a data loader of its own."""

    def __init__(self, setting: Setting, callbacks: list[TrainerCallback]) -> None:
        args = arguments(setting)
        counted = range(args.max_steps * args.gradient_accumulation_steps * args.per_device_train_batch_size)
        super().__init__(model_of(setting), args, train_dataset=list(counted), callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.setting = setting
        self.steps: Iterator[StepBatches] = iter(())

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """The dense run's curve. With a straight fall, the Trainer's default, AdamW stays on the plateau for longer."""
        curve = self.setting.stage.schedule
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = LambdaLR(optimizer, lambda step: curve.learning_rate_at(step) / curve.peak)
        return self.lr_scheduler

    def get_batch_samples(self, *_: Any) -> tuple[list[dict[str, Tensor]], None]:
        """The next step's micro-batches; how many tokens they predict is left to the model's mean."""
        return [self.setting.inputs(batch) for batch in next(self.steps).batches], None


@torch.no_grad()
def validate(model: torch.nn.Module, setting: Setting, batches: StepBatches) -> dict[str, float]:
    """Loss, nats, and accuracy over all predicted tokens of the validation, with the masks that our runs have there."""
    device = next(model.parameters()).device
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = count = 0
    for batch in batches.batches:
        inputs = {name: values.to(device) for name, values in setting.inputs(batch).items()}
        labels_BS = inputs.pop("labels")
        predicted_BS = labels_BS != NOT_PREDICTED
        logits_NV, labels_N = model(**inputs).logits[predicted_BS].float(), labels_BS[predicted_BS]
        loss += F.cross_entropy(logits_NV, labels_N, reduction="sum").double()
        correct += int((logits_NV.argmax(1) == labels_N).sum())
        count += len(labels_N)
    model.train()
    mean = float(loss) / count
    return {"loss": mean, "masked_loss": mean, "masked_accuracy": correct / count}


class Watch(TrainerCallback):
    """Validates when our runs would, shows progress, and saves and ends the training when it is asked to stop."""

    def __init__(self, setting: Setting, telemetry: Telemetry, progress: StageProgress, stop: StopRequest) -> None:
        self.setting, self.telemetry, self.progress, self.stop = setting, telemetry, progress, stop
        loader = stage_loader(setting.corpus, "validation", setting.stage, setting.recipe, setting.micro_batch)
        self.validation = loader.load(0).kept()
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        step, stage = state.global_step, self.setting.stage
        if step % self.setting.recipe.validation.every == 0 or step == stage.steps:
            scores = validate(keywords["model"], self.setting, self.validation)
            self.telemetry.scalars("validation", step, {"stage": stage.name, "step": step, **scores})
            self.note = f"validation loss {scores['loss']:.3f}"
        self.progress.update(step, self.note)
        if self.stop.signal is not None or step == stage.steps:
            control.should_save = True
        if self.stop.signal is not None:
            control.should_training_stop = True


def train(setting: Setting, stop: StopRequest) -> bool:
    """Trains to the end, or until asked to stop, from the newest whole checkpoint; returns whether that was the end."""
    stage, folder = setting.stage, setting.run_dir
    newest = newest_checkpoint(folder / "checkpoints")
    done = read_json(newest / "trainer_state.json")["global_step"] if newest else 0
    resume_after = done if newest else -1
    telemetry = Telemetry(
        folder,
        [TensorBoard(folder, resume_after)],
        enabled=True,
        resume_after=resume_after,
        layout={"ranks": 1, "device": device_name(torch.device(device_type()))},
    )
    loader = stage_loader(setting.corpus, "train", stage, setting.recipe, setting.micro_batch)
    with (
        closing(telemetry),
        StageProgress(stage.name, stage.steps, done, enabled=True) as progress,
        closing(prefetched_steps(loader, done * stage.global_batch, setting.recipe.loader_workers)) as steps,
    ):
        if done < stage.steps:
            trainer = RaceTrainer(setting, [Watch(setting, telemetry, progress, stop), CloseCheckpoints()])
            trainer.steps = steps
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
            done = trainer.state.global_step
    return done == stage.steps


def note_configuration(setting: Setting) -> None:
    """Writes what the race reads of a run: its recipe, and what a step takes.

    The Trainer's model has the head of masked tokens at every position.
    """
    setting.run_dir.mkdir(parents=True, exist_ok=True)
    setting.recipe.save(setting.run_dir / "config.yaml")
    stage = setting.stage
    full = corpus_plan(setting.recipe, setting.corpus).full
    flops = stage.global_batch * flops_per_sequence(full, stage.length, stage.length)
    described = {"name": stage.name, "steps": stage.steps, "flops_per_step": flops}
    write_json(setting.run_dir / "plan.json", {"loop": LOOP, "stages": [described]})


def is_hugging_face(run: Path) -> bool:
    """Whether a run directory of the race is of this arm."""
    return bool(read_json(run / "plan.json").get("loop") == LOOP)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--config", "--data", "--run-dir"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, required=True, help="AdamW's, at the end of warm-up")
    given, settings = parser.parse_known_args(argv)
    changes = {"data": given.data, "seed": given.seed, "plan": "[phase1]", "losses": "[masked]"}
    changes["phase1.learning_rate"] = given.learning_rate
    recipe = load_recipe(given.config, [*(f"--{name}={value}" for name, value in changes.items()), *settings])
    stop = StopRequest()
    stop.listen()
    setting = Setting.of(given.run_dir, recipe)
    note_configuration(setting)
    if train(setting, stop):
        write_text(given.run_dir / "DONE", "")


if __name__ == "__main__":
    main()
