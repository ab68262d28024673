"""The memory that a stage took: given back before the next one takes its own."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from earlybert.pretrain import run
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.train.engine import StageEngine
from tests.in_process import train_here

STEPS = 2
SHORT = ("--config=small.yaml", "--plan=[search, narrow, phase1]", f"--search.steps={STEPS}", f"--phase1.steps={STEPS}")


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Python's collector comes when it likes, so by chance in time."""
    gc.disable()
    yield
    gc.enable()


def held_by(engine: StageEngine) -> dict[str, Any]:
    masters = {f"master {index}": partition.flat for index, partition in enumerate(engine.layout)}
    moments = {
        f"{moment} of {name}": engine.optimizer.state[flat][moment]
        for name, flat in masters.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    weights = dict(engine.engine.module.named_parameters())
    return {"engine": engine.engine, "wrapper": engine.engine.optimizer, **weights, **masters, **moments}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_kept_that_a_stage_no_longer_needs(workplace: Path, without_collector: None, precision: str) -> None:
    """Of the stage before when its engine is built, and of the weights that it begins with when it is trained."""
    left: list[tuple[str, weakref.ref[Any]]] = []
    begun: list[tuple[str, weakref.ref[Any]]] = []
    alive: list[list[str]] = []

    def note_alive(references: list[tuple[str, weakref.ref[Any]]]) -> None:
        alive.append([name for name, reference in references if reference() is not None])

    def watch() -> None:
        build, train = run.build_engine, run.train_stage

        def built(config: Any, start: TrainingState, *arguments: Any) -> StageEngine:
            note_alive(left)
            engine = build(config, start, *arguments)
            left.extend((name, weakref.ref(held)) for name, held in held_by(engine).items())
            begun.extend((name, weakref.ref(weight)) for name, weight in start.weights.items())
            return engine

        def trained(*arguments: Any, **options: Any) -> None:
            note_alive(begun)
            train(*arguments, **options)

        mock.patch.object(run, "build_engine", built).start()
        mock.patch.object(run, "train_stage", trained).start()

    arguments = (*SHORT, "--export=[]", f"--precision={precision}", f"--run-dir=given-back-{precision}")
    status, output = train_here(workplace, *arguments, prepare=watch)
    assert status == 0, output
    assert len(left) > 8 and len(begun) > 50 and alive == [[], [], [], []]
