"""Micro-batches made ahead of the training, by a thread or by processes, and brought to the device."""

import itertools
import mmap
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.data_prep.workers import start_worker
from earlybert.pretrain.network.batch import Batch, SlabLayout
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.train.batches import StepBatches, StepLoader
from earlybert.pretrain.train.stopping import ignore_signals

Result = TypeVar("Result")
# Micro-batches that are being made or wait for the training, for each process that makes them.
AHEAD = 4
# What a process that makes micro-batches works with.
_loader: StepLoader
_slabs: list[Tensor]


def prefetched_steps(loader: StepLoader, position: int, workers: int = 0) -> Generator[StepBatches, None, None]:
    """Steps from `position` on without end; while a micro-batch trains, the next ones are made.

    All batches of a step must be taken before the next step is.

    Args:
        loader: What to load.
        position: Position of the first step.
        workers: Processes that make micro-batches; with 0 a thread does, which competes with the training for Python.

    Raises:
        UserError: A process failed or was killed.
    """
    micro_batches = loader.accumulation
    places = [itertools.count(position, loader.global_batch) for _ in range(3)]
    with closing(_Thread(loader) if workers == 0 else _Processes(loader, workers)) as makers:
        works = _ahead((makers.work(place) for place in places[0]), 1)
        turns = ((place, turn) for place in places[1] for turn in range(micro_batches))
        batches = _ahead((makers.batch(number, *turn) for number, turn in enumerate(turns)), AHEAD * max(1, workers))
        for place in places[2]:
            yield StepBatches(place, next(works), micro_batches, itertools.islice(batches, micro_batches))


def _ahead(begun: Iterator[Callable[[], Result]], number: int) -> Iterator[Result]:
    """The results of an endless row of calls, of which so many have begun before the first is waited for."""
    waiting = deque(itertools.islice(begun, number))
    while True:
        result = waiting.popleft()()
        waiting.append(next(begun))
        yield result


class _Thread:
    """Makes micro-batches in a thread of this process."""

    def __init__(self, loader: StepLoader) -> None:
        self._loader, self._executor = loader, ThreadPoolExecutor(1)

    def work(self, position: int) -> Callable[[], Work]:
        return self._executor.submit(self._loader.work, position).result

    def batch(self, _number: int, position: int, turn: int) -> Callable[[], Batch]:
        return self._executor.submit(self._loader.batch, position, turn).result

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


class _Processes:
    """Makes micro-batches in other processes, which leave them in memory that is shared with this one.

    Only a few numbers go through a pipe: tensors would take a file descriptor each, and a process that dies while it
    writes more into a pipe than this takes at once would leave its reader waiting.
    """

    def __init__(self, loader: StepLoader, workers: int) -> None:
        # No batch has as many words; what is not written to takes no memory.
        tokens = loader.micro_batch * loader.stage.length
        words = SlabLayout(tokens, tokens, tokens, tokens).words
        shared = torch.frombuffer(mmap.mmap(-1, 8 * words * AHEAD * workers), dtype=torch.int64)
        self._slabs = list(shared.split(words))
        self._others = set(multiprocessing.active_children())
        # Forked, as the samples and the shared memory are there then.
        context = multiprocessing.get_context("fork")
        self._executor = ProcessPoolExecutor(workers, context, _start, (loader, self._slabs))

    def work(self, position: int) -> Callable[[], Work]:
        return partial(self._result, self._submit(_make_work, position))

    def batch(self, number: int, position: int, turn: int) -> Callable[[], Batch]:
        # When this number is called for, the batch that had the slab before has been taken.
        slab = number % len(self._slabs)
        return partial(self._read, slab, self._submit(_make_batch, slab, position, turn))

    def _read(self, slab: int, made: Future[SlabLayout]) -> Batch:
        layout = self._result(made)
        return Batch.read(self._slabs[slab][: layout.words].clone(), layout)

    def _submit(self, function: Callable[..., Result], *arguments: int) -> Future[Result]:
        with _failing_in_one_sentence():
            return self._executor.submit(function, *arguments)

    def _result(self, made: Future[Result]) -> Result:
        with _failing_in_one_sentence():
            return made.result()

    def close(self) -> None:
        for process in set(multiprocessing.active_children()) - self._others:
            process.kill()
        self._executor.shutdown(cancel_futures=True)


def _start(loader: StepLoader, slabs: list[Tensor]) -> None:
    global _loader, _slabs
    _loader, _slabs = loader, slabs
    start_worker()
    # A run that is asked to stop ends its step first.
    ignore_signals()
    torch.set_num_threads(1)


def _make_work(position: int) -> Work:
    return _loader.work(position)


def _make_batch(slab: int, position: int, turn: int) -> SlabLayout:
    batch = _loader.batch(position, turn)
    batch.write(_slabs[slab][: batch.layout.words])
    return batch.layout


@contextmanager
def _failing_in_one_sentence() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except BrokenProcessPool:
        problem = "was killed, probably because memory ran out"
    except Exception as error:
        problem = f"failed ({type(error).__name__}: {error})"
    else:
        return
    raise UserError(f"a process that loads training data {problem}; run the same command again to resume")


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Micro-batches where they are computed; a GPU copies each while it computes the one before."""
    on_gpu = device.type == "cuda"
    copying = torch.cuda.Stream(device) if on_gpu else None
    ahead: tuple[Batch, Any] | None = None
    for batch in batches:
        with torch.cuda.stream(copying) if on_gpu else nullcontext():
            copied = batch.to(device), copying and copying.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, copied: "torch.cuda.Event | None") -> Batch:
    """Has the stream that computes wait for a copy, and keeps its memory until that has read it."""
    if copied is not None:
        computing = torch.cuda.current_stream(batch.input_ids_T.device)
        computing.wait_event(copied)
        # All tensors lie in one.
        batch.input_ids_T.record_stream(computing)
    return batch
