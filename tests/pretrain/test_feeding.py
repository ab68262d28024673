"""Micro-batches made ahead: the same ones in order, few of them at a time, and nobody waits for ever."""

import dataclasses
import multiprocessing
import os
import resource
import signal
import time
import weakref
from contextlib import closing
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import PhaseConfig, Recipe
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train.batches import StepLoader
from earlybert.pretrain.train.feeding import AHEAD, on_device, prefetched_steps
from tests.pretrain.small_models import batch_of

LENGTH, CPU = 32, torch.device("cpu")


def make_loader(corpus: Corpus, global_batch: int = 11, micro_batch: int = 2, **options: Any) -> StepLoader:
    phase = PhaseConfig(
        length=LENGTH,
        max_predictions=4,
        global_batch=global_batch,
        micro_batch=micro_batch,
        steps=50,
        learning_rate=0.01,
        warmup=0.2,
    )
    recipe = Recipe(phase1=phase, phase2=phase, plan=["phase1"])
    options |= {"global_batch": global_batch, "micro_batch": micro_batch, "rank": 0, "world_size": 1}
    return StepLoader(corpus, "train", build_stages(recipe)[0], recipe, **options)


def assert_same(found: Batch, expected: Batch) -> None:
    for field in dataclasses.fields(Batch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if torch.is_tensor(other):
            assert torch.equal(one, other) and one.dtype == other.dtype
        elif field.name in ("tokens", "needed"):
            assert torch.equal(one.bounds, other.bounds) and one.bounds.dtype == other.bounds.dtype
            assert (one.lengths, one.longest) == (other.lengths, other.longest)
        else:
            assert one == other


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_prefetched_steps_are_the_steps_in_order(packed_corpus: Corpus, workers: int, packed: bool) -> None:
    loader = make_loader(packed_corpus, packed=packed)
    with closing(prefetched_steps(loader, 22, workers)) as steps:
        for position, step in zip(range(22, 22 + 4 * 11, 11), steps, strict=False):
            expected = loader.load(position)
            assert (step.position, step.work, step.micro_batches) == (position, expected.work, 6)
            for found, batch in zip(step.batches, expected.batches, strict=True):
                assert_same(found, batch)


def test_a_kept_batch_is_not_written_over(small_corpus: Corpus) -> None:
    loader = make_loader(small_corpus, global_batch=20)
    with closing(prefetched_steps(loader, 0, 1)) as steps:
        kept = [batch for step in islice(steps, 3) for batch in step.batches]
    expected = [batch for position in (0, 20, 40) for batch in loader.load(position).batches]
    assert len(kept) == 30 > 3 * AHEAD
    for found, batch in zip(kept, expected, strict=True):
        assert_same(found, batch)


@pytest.mark.parametrize("prefetched", [False, True])
def test_few_batches_of_a_large_step_are_alive_at_a_time(
    small_corpus: Corpus, prefetched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Batch] = weakref.WeakSet()
    monkeypatch.setattr(Batch, "__hash__", lambda batch: id(batch))
    make = StepLoader.batch

    def counted(self: StepLoader, position: int, turn: int) -> Batch:
        batch = make(self, position, turn)
        alive.add(batch)
        return batch

    monkeypatch.setattr(StepLoader, "batch", counted)
    loader = make_loader(small_corpus, global_batch=400)
    largest = turns = 0
    with closing(prefetched_steps(loader, 0)) as steps:
        step = next(steps) if prefetched else loader.load(0)
        for batch in on_device(step.batches, CPU):
            largest, turns = max(largest, len(alive)), turns + 1
            del batch
    assert turns == 200
    # Those that wait, one that is being made, the one that is computed, and the next on the device.
    assert largest <= (AHEAD + 3 if prefetched else 2)


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_step_of_many_micro_batches_needs_few_open_files(small_corpus: Corpus) -> None:
    """Even where all of them are kept."""
    loader = make_loader(small_corpus, global_batch=2048, micro_batch=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 100, before[1]))
    try:
        with closing(prefetched_steps(loader, 0, workers=1)) as steps:
            step = next(steps).kept()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    batches = list(step.batches)
    assert len(batches) == 2048
    assert Work.total(map(Work.of, batches)) == step.work


def taken(steps: Any) -> int:
    """Goes through all batches that come, many more than are made ahead; returns how many."""
    return sum(1 for step in islice(steps, 20) for _ in step.batches)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_process_that_is_killed_ends_the_run_in_one_sentence(small_corpus: Corpus, when: str) -> None:
    others = set(multiprocessing.active_children())
    with closing(prefetched_steps(make_loader(small_corpus), 0, 2)) as steps:
        step = next(steps)
        if when == "later":
            step.kept()
        processes = set(multiprocessing.active_children()) - others
        assert len(processes) == 2
        victim = processes.pop().pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(UserError, match=r"^a process that loads training data was killed"):
            taken(steps)
    assert set(multiprocessing.active_children()) <= others


def test_a_process_that_fails_ends_the_run_in_one_sentence(
    small_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = StepLoader.batch

    def failing(self: StepLoader, position: int, turn: int) -> Batch:
        if position == 33 and turn == 4:
            raise OSError(5, "Input/output error")
        return make(self, position, turn)

    monkeypatch.setattr(StepLoader, "batch", failing)
    others = set(multiprocessing.active_children())
    with closing(prefetched_steps(make_loader(small_corpus), 0, 2)) as steps:
        message = r"^a process that loads training data failed \(OSError: .*Input/output error\);"
        with pytest.raises(UserError, match=message):
            taken(steps)
    assert set(multiprocessing.active_children()) <= others


def test_processes_leave_signals_to_the_run_and_end_with_it(small_corpus: Corpus) -> None:
    others = set(multiprocessing.active_children())
    with closing(prefetched_steps(make_loader(small_corpus), 0, 2)) as steps:
        next(steps).kept()
        processes = set(multiprocessing.active_children()) - others
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            for process in processes:
                assert process.pid is not None
                os.kill(process.pid, number)
        assert taken(steps) == 20 * 6
    assert set(multiprocessing.active_children()) <= others


def train_for_ever(corpus: Path, workers: Connection) -> None:
    with closing(prefetched_steps(make_loader(Corpus.open(corpus)), 0, workers=2)) as steps:
        for step in steps:
            step.kept()
            workers.send([process.pid for process in multiprocessing.active_children()])
            time.sleep(100)


def test_processes_of_a_killed_run_do_not_outlive_it(small_corpus: Corpus) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    run = context.Process(target=train_for_ever, args=(small_corpus.directory, theirs))
    run.start()
    assert ours.poll(60)
    workers = ours.recv()
    run.kill()
    run.join()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- the device ------------------------------------------------------------------------------------------------------


def test_a_slab_holds_a_batch() -> None:
    """Stand-ins too; all tensors lie in the one that was read."""
    for batch in (batch_of((17, 9, 1, 12)), dataclasses.replace(batch_of((1,)), weight=0.0)):
        slab = torch.empty(batch.layout.words, dtype=torch.int64)
        batch.write(slab)
        found = Batch.read(slab, batch.layout)
        assert_same(found, batch)
        tensors = [each for each in vars(found).values() if torch.is_tensor(each)]
        tensors += [found.tokens.bounds, found.needed.bounds]
        assert len(tensors) == 10
        assert {each.untyped_storage().data_ptr() for each in tensors} == {slab.data_ptr()}


def test_another_device_gets_one_copy() -> None:
    batch = batch_of((17, 9, 1, 12))
    moved = batch.to(torch.device("meta"))
    assert moved.layout == batch.layout and moved.tokens.lengths == batch.tokens.lengths
    assert all(each.is_meta for each in (*vars(moved).values(), moved.tokens.bounds) if torch.is_tensor(each))
    assert batch.to(CPU) is batch
    # A GPU is called with its number or, where it is the current one, without.
    place: Any = SimpleNamespace(device=torch.device("cuda", 0))
    there = dataclasses.replace(batch, input_ids_T=place)
    assert there.to(torch.device("cuda")) is there and there.to(torch.device("cuda", 0)) is there


def test_a_device_has_the_next_batch_before_it_computes_one() -> None:
    asked: list[int] = []

    def batches() -> Any:
        for number in range(3):
            asked.append(number)
            yield batch_of((number + 1,))

    lengths = []
    for batch in on_device(batches(), CPU):
        lengths.append(batch.tokens.lengths)
        assert len(asked) == min(len(lengths) + 1, 3)
    assert lengths == [(1,), (2,), (3,)]
    assert not list(on_device([], CPU))


@pytest.mark.gpu
def test_a_gpu_computes_with_what_was_copied() -> None:
    """While it is kept busy: every copy ends long before it is read, and memory that was not held would be reused."""
    device = torch.device("cuda", torch.cuda.current_device())
    batches = [batch_of((300,) * 50, seed) for seed in range(30)]
    expected = [(int(batch.input_ids_T.sum()), int(batch.masked_labels_N.sum())) for batch in batches]
    busy = torch.ones(4096, 4096, device=device)
    found = []
    for batch in on_device(iter(batches), device):
        busy = busy @ busy * 1e-4
        found.append((batch.input_ids_T.sum(), batch.masked_labels_N.sum()))
        del batch
    assert [(int(ids), int(labels)) for ids, labels in found] == expected
