"""Seconds of a step for every network shape in the race, all measured in turn in one process.

A shared machine is faster at one hour than at another; steps taken in turn share its good and bad moments alike.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from race.hugging_face import LOOP, RaceTrainer, Setting, is_hugging_face
from rich.progress import track

from earlybert.core import distributed
from earlybert.core.devices import device_type, keep_freed_memory, set_matmul_precision, synchronize
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.network.config import dense_config
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.plan.plan import run_plan
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, Recipe, load_recipe
from earlybert.pretrain.plan.stages import Stage, build_stages
from earlybert.pretrain.train.batches import stage_loader
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.step import forward_and_backward

BATCHES = 4


class TimedShape:
    """One stage of a run: its network and optimizer, and what its steps took."""

    def __init__(self, run: Path, stage_index: int) -> None:
        self.recipe: Recipe = load_recipe(run / "config.yaml", [])
        assert self.recipe.data is not None
        self.corpus = Corpus.open(Path(self.recipe.data))
        plan = run_plan(run, self.recipe, self.corpus)
        self.stage, self.config = plan.stages[stage_index].stage, plan.network(stage_index)
        self.file = DeepSpeedFile.load(Path(self.recipe.deepspeed or DEFAULT_DEEPSPEED))
        self.seconds: list[float] = []

    @property
    def key(self) -> str:
        """Steps with equal keys take equally long."""
        config, masks = self.config, self.stage.masks.share_at(self.stage.schedule.start + self.stage.steps // 2)
        network = f"heads {config.heads} neurons {config.neurons}{' searching' if config.searching else ''}"
        return f"{network} {self.file.optimizer} masks {masks:.3f}"

    def build(self) -> None:
        """Needs the process group."""
        self.device = torch.device(device_type())
        full, kept = dense_config(self.config), self.config.kept_units
        weights = initial_weights(full, self.recipe.seed)
        if kept is not None:
            weights = narrow_weights(full, weights, kept)
        self.engine = StageEngine(self.config, TrainingState(weights), self.stage, self.recipe, self.file, self.device)
        self.engine.set_learning_rate(1e-4)
        self.engine.engine.train()
        loader = stage_loader(self.corpus, "train", self.stage, self.recipe, self.engine.micro_batch)
        self.batches = [loader.load(position).kept() for position in spread_positions(self.stage)]

    def step(self, turn: int) -> None:
        """One optimizer step, as the training loop makes it; loading the data is left out."""
        batches = self.batches[turn % BATCHES]
        search = self.recipe.search if self.stage.searching else None
        with timed(self.seconds, self.device):
            forward_and_backward(self.engine, batches.batches, batches.work, range(batches.micro_batches), search)


class TimedTrainer:
    """The run of Hugging Face's Trainer: what one of its steps does, and what that took."""

    key = LOOP

    def __init__(self, run: Path) -> None:
        self.setting = Setting.of(run, load_recipe(run / "config.yaml", []))
        self.seconds: list[float] = []

    def build(self) -> None:
        """Before there is a process group, which the Trainer would join."""
        self.trainer = RaceTrainer(self.setting, [])
        optimizer = self.trainer.create_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        # Mixed precision, where the recipe has it, comes with this.
        self.model, self.optimizer = self.trainer.accelerator.prepare(self.trainer.model, optimizer)
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps
        loader = stage_loader(self.setting.corpus, "train", self.stage, self.setting.recipe, self.setting.micro_batch)
        steps = [loader.load(position).batches for position in spread_positions(self.stage)]
        self.batches = [[self.setting.inputs(batch) for batch in batches] for batches in steps]

    @property
    def stage(self) -> Stage:
        return self.setting.stage

    def step(self, turn: int) -> None:
        """One update, as the Trainer makes it; loading the data is left out."""
        with timed(self.seconds, self.trainer.args.device):
            for inputs in self.batches[turn % BATCHES]:
                self.trainer.training_step(self.model, dict(inputs))
            self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()


def spread_positions(stage: Stage) -> list[int]:
    """Where in the data some steps of a stage begin, evenly over it: the share of masked tokens may change."""
    steps = [(2 * number + 1) * stage.steps // (2 * BATCHES) for number in range(BATCHES)]
    return [stage.first_position + step * stage.global_batch for step in steps]


@contextmanager
def timed(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Adds what happens inside to the list."""
    synchronize(device)
    began = time.perf_counter()
    yield
    synchronize(device)
    seconds.append(time.perf_counter() - began)


def stage_shapes(run: Path) -> dict[str, TimedShape | TimedTrainer]:
    """A run's stages by name."""
    stages = build_stages(load_recipe(run / "config.yaml", []))
    if is_hugging_face(run):
        return {stage.name: TimedTrainer(run) for stage in stages}
    return {stage.name: TimedShape(run, index) for index, stage in enumerate(stages)}


def measure(runs: list[Path], rounds: int) -> dict[str, float]:
    """Median seconds of a step by shape, over all stages of these runs; the first round warms up."""
    shapes = {shape.key: shape for run in runs for shape in stage_shapes(run).values()}
    trainers = [shape for shape in shapes.values() if isinstance(shape, TimedTrainer)]
    for trainer in trainers:
        trainer.build()
    device = distributed.start()
    keep_freed_memory()
    set_matmul_precision("auto", device)
    for shape in shapes.values():
        if isinstance(shape, TimedShape):
            shape.build()
    for turn in track(range(rounds + 1), f"timing {len(shapes)} shapes in turn"):
        for shape in shapes.values():
            shape.step(turn)
    return {key: statistics.median(shape.seconds[1:]) for key, shape in shapes.items()}
