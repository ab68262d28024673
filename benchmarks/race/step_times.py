"""Seconds of a step for every network shape in the race, all measured in turn in one process.

A shared machine is faster at one hour than at another; steps taken in turn share its good and bad moments alike.
"""

import statistics
import time
from pathlib import Path

import torch
from rich.progress import track

from earlybert.core import distributed
from earlybert.core.devices import keep_freed_memory, set_matmul_precision, synchronize
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.network.config import dense_config
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.plan.plan import run_plan
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, Recipe, load_recipe
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train.batches import StepBatches, StepLoader
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.step import forward_and_backward

BATCHES = 4


class TimedShape:
    """One stage of a run: its network, and what its steps took."""

    def __init__(self, run: Path, stage_index: int) -> None:
        self.recipe: Recipe = load_recipe(run / "config.yaml", [])
        assert self.recipe.data is not None
        self.corpus = Corpus.open(Path(self.recipe.data))
        plan = run_plan(run, self.recipe, self.corpus)
        self.stage, self.config = plan.stages[stage_index].stage, plan.network(stage_index)
        self.seconds: list[float] = []

    @property
    def key(self) -> str:
        """Networks with equal keys take equally long."""
        config = self.config
        return f"heads {config.heads} neurons {config.neurons}{' searching' if config.searching else ''}"

    def build(self, device: torch.device) -> None:
        self.device = device
        full, kept = dense_config(self.config), self.config.kept_units
        weights = initial_weights(full, self.recipe.seed)
        if kept is not None:
            weights = narrow_weights(full, weights, kept)
        file = DeepSpeedFile.load(Path(DEFAULT_DEEPSPEED))
        self.engine = StageEngine(self.config, TrainingState(weights), self.stage, self.recipe, file, device)
        self.engine.set_learning_rate(1e-4)
        self.engine.engine.train()

    def batches(self) -> list[StepBatches]:
        batch = self.stage.global_batch
        loader = StepLoader(
            self.corpus,
            "train",
            self.stage,
            self.recipe,
            global_batch=batch,
            micro_batch=self.engine.micro_batch,
            rank=0,
            world_size=1,
        )
        return [loader.load(step * batch).kept() for step in range(BATCHES)]

    def step(self, batches: StepBatches) -> None:
        """One optimizer step, as the training loop makes it; loading the data is left out."""
        search = self.recipe.search if self.stage.searching else None
        synchronize(self.device)
        began = time.perf_counter()
        forward_and_backward(self.engine, batches.batches, batches.work, range(batches.micro_batches), search)
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - began)


def stage_shapes(run: Path) -> dict[str, TimedShape]:
    """A run's stages by name."""
    stages = build_stages(load_recipe(run / "config.yaml", []))
    return {stage.name: TimedShape(run, index) for index, stage in enumerate(stages)}


def measure(runs: list[Path], rounds: int) -> dict[str, float]:
    """Median seconds of a step by shape, over all stages of these runs; the first round warms up."""
    device = distributed.start()
    keep_freed_memory()
    shapes = {timed.key: timed for run in runs for timed in stage_shapes(run).values()}
    set_matmul_precision("auto", device)
    for timed in shapes.values():
        timed.build(device)
    batches = next(iter(shapes.values())).batches()
    for turn in track(range(rounds + 1), f"timing {len(shapes)} shapes in turn"):
        for timed in shapes.values():
            timed.step(batches[turn % BATCHES])
    return {key: statistics.median(timed.seconds[1:]) for key, timed in shapes.items()}
