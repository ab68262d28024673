"""Micro-batches made ahead of the training, by a thread or by processes, and brought to the device."""

import itertools
import mmap
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from multiprocessing.connection import Connection
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

    Only a few numbers go through pipes, as tensors would take a file descriptor each. A thread takes the batches out of
    the shared memory, so that the one that trains finds them ready.
    """

    def __init__(self, loader: StepLoader, workers: int) -> None:
        # No batch has more, were every token a sequence and predicted; what is not written to takes no memory.
        tokens = (1,) * (loader.micro_batch * loader.stage.length)
        words = SlabLayout(tokens, tokens, len(tokens)).words
        shared = torch.frombuffer(mmap.mmap(-1, 8 * words * AHEAD * workers), dtype=torch.int64)
        self._slabs = list(shared.split(words))
        # Forked, as the samples and the shared memory are there then.
        context = multiprocessing.get_context("fork")
        self._processes, self._pipes = [], []
        for _ in range(workers):
            pipe, theirs = context.Pipe()
            self._processes.append(context.Process(target=_serve, args=(loader, self._slabs, theirs), daemon=True))
            self._processes[-1].start()
            # The other process has the only one, so that its end is the end of the pipe.
            theirs.close()
            self._pipes.append(pipe)
        self._turns = itertools.cycle(self._pipes)
        self._taker = ThreadPoolExecutor(1)

    def work(self, position: int) -> Callable[[], Work]:
        return self._ask(None, position)

    def batch(self, number: int, position: int, turn: int) -> Callable[[], Batch]:
        # When this number is asked for, the batch that had the slab before has been taken.
        return self._ask(number % len(self._slabs), position, turn)

    def _ask(self, slab: int | None, *place: int) -> Callable[[], Any]:
        pipe = next(self._turns)
        with _alive():
            pipe.send((slab, *place))
        return self._taker.submit(self._answer, pipe, slab).result

    def _answer(self, pipe: "Connection[Any, Any]", slab: int | None) -> Any:
        with _alive():
            answer = pipe.recv()
        if isinstance(answer, UserError):
            raise answer
        return answer if slab is None else Batch.read(self._slabs[slab][: answer.words].clone(), answer)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._taker.shutdown(cancel_futures=True)


def _serve(loader: StepLoader, slabs: list[Tensor], pipe: "Connection[Any, Any]") -> None:
    """What one of the processes does until it is killed."""
    start_worker()
    # A run that is asked to stop ends its step first.
    ignore_signals()
    torch.set_num_threads(1)
    while True:
        slab, *place = pipe.recv()
        try:
            answer: Any = loader.work(*place) if slab is None else _written(loader.batch(*place), slabs[slab])
        except UserError as error:
            answer = error
        except Exception as error:
            answer = UserError(
                f"a process that loads training data failed ({type(error).__name__}: {error}); "
                "run the same command again to resume"
            )
        pipe.send(answer)


def _written(batch: Batch, slab: Tensor) -> SlabLayout:
    layout = batch.layout
    batch.write(slab[: layout.words])
    return layout


@contextmanager
def _alive() -> Iterator[None]:
    """For what asks another process."""
    try:
        yield
    except (EOFError, OSError):
        raise UserError(
            "a process that loads training data was killed, probably because memory ran out; "
            "run the same command again to resume"
        ) from None


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Micro-batches where they are computed; a GPU copies each while it computes the one before it."""
    on_gpu = device.type == "cuda"
    copying = _copying_stream(device) if on_gpu else None
    ahead: tuple[Batch, Any] | None = None
    for batch in batches:
        with torch.cuda.stream(copying) if on_gpu else nullcontext():
            copied = batch.to(device), copying and copying.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead)


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    # Memory that was allocated on one stream is not used again on others.
    return torch.cuda.Stream(device)


def _arrived(batch: Batch, copied: torch.cuda.Event | None) -> Batch:
    """Has the stream that computes wait for a copy, and keeps its memory until that has read it."""
    if copied is not None:
        computing = torch.cuda.current_stream(batch.input_ids_T.device)
        computing.wait_event(copied)
        # All tensors lie in one.
        batch.input_ids_T.record_stream(computing)
    return batch
