"""The memory that a stage took: given back before the next one takes its own."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from earlybert.pretrain import run
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
    return {"engine": engine.engine, "wrapper": engine.engine.optimizer, **masters, **moments}


def test_nothing_of_a_stage_is_left_when_the_next_is_built(workplace: Path, without_collector: None) -> None:
    left: list[tuple[str, weakref.ref[Any]]] = []
    alive: list[list[str]] = []

    def watch() -> None:
        build = run.build_engine

        def built(*arguments: Any) -> StageEngine:
            alive.append([name for name, reference in left if reference() is not None])
            engine = build(*arguments)
            left.extend((name, weakref.ref(held)) for name, held in held_by(engine).items())
            return engine

        mock.patch.object(run, "build_engine", built).start()

    arguments = (*SHORT, "--export=[]", "--run-dir=given-back")
    status, output = train_here(workplace, *arguments, prepare=watch)
    assert status == 0, output
    assert len(left) > 8 and alive == [[], []]
