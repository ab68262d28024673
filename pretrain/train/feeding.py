"""Micro-batches made ahead of the training, by a thread or by processes, and brought to the device."""

import itertools
import mmap
import multiprocessing
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import cache
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.data_prep.workers import start_worker
from earlybert.pretrain.network.batch import Batch, SlabLayout
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.train.batches import StepBatches, StepLoader
from earlybert.pretrain.train.stopping import ignore_signals

# Micro-batches that are ready for the training; as many are being made or wait in each process that makes them.
AHEAD = 4
# Where a step begins, and the number of a micro-batch in it, or None for the step's work.
Place = tuple[int, int | None]


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
    starts, turns = itertools.count(position, loader.global_batch), (None, *range(loader.accumulation))
    places: Iterator[Place] = ((start, turn) for start in starts for turn in turns)
    with ExitStack() as at_end:
        processes = _Processes(loader, workers) if workers else None
        made = (_make(loader, *place) for place in places) if processes is None else processes.made(places)
        ready = at_end.enter_context(closing(_Ahead(made))).taken()
        if processes is not None:
            # They end before the thread does, which may be waiting for one of them.
            at_end.enter_context(closing(processes))
        for start in itertools.count(position, loader.global_batch):
            yield StepBatches(start, next(ready), loader.accumulation, itertools.islice(ready, loader.accumulation))


def _make(loader: StepLoader, start: int, turn: int | None) -> Any:
    return loader.work(start) if turn is None else loader.batch(start, turn)


class _Ahead:
    """A thread that goes through an endless iterator, a few items ahead of the one that trains, which finds them ready.

    That one has little to do for it: these queues are the quickest that Python has.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self._items, self._closed = items, False
        self._ready: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        # Has an entry for every item that there is room for.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(AHEAD):
            self._room.put(None)
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def _go(self) -> None:
        while True:
            self._room.get()
            if self._closed:
                return
            try:
                self._ready.put((next(self._items), None))
            except Exception as error:
                self._ready.put((None, error))
                return

    def taken(self) -> Iterator[Any]:
        """The items; raises what the iterator raised, in its place."""
        while True:
            item, error = self._ready.get()
            if error is not None:
                raise error
            self._room.put(None)
            yield item

    def close(self) -> None:
        self._closed = True
        self._room.put(None)
        self._thread.join()


class _Processes:
    """Makes micro-batches in other processes, which leave them in memory that is shared with this one.

    Only a few numbers go through pipes, as tensors would take a file descriptor each.
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

    def made(self, places: Iterator[Place]) -> Iterator[Work | Batch]:
        """What belongs to each place, in their order; the processes take turns."""
        asked: deque[tuple[Connection[Any, Any], int]] = deque()
        turns = zip(itertools.cycle(self._pipes), itertools.cycle(range(len(self._slabs))), strict=True)
        for (pipe, slab), place in zip(turns, places, strict=True):
            if len(asked) == len(self._slabs):
                # Then the batch that had the slab before has been taken out of it.
                yield self._answer(*asked.popleft())
            with _alive():
                pipe.send((slab, *place))
            asked.append((pipe, slab))

    def _answer(self, pipe: "Connection[Any, Any]", slab: int) -> Work | Batch:
        with _alive():
            answer: UserError | Work | SlabLayout = pipe.recv()
        if isinstance(answer, UserError):
            raise answer
        return answer if isinstance(answer, Work) else Batch.read(self._slabs[slab][: answer.words].clone(), answer)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(loader: StepLoader, slabs: list[Tensor], pipe: "Connection[Any, Any]") -> None:
    """What one of the processes does until it is killed."""
    start_worker()
    # A run that is asked to stop ends its step first.
    ignore_signals()
    torch.set_num_threads(1)
    while True:
        slab, *place = pipe.recv()
        try:
            answer: Any = _make(loader, *place)
            if isinstance(answer, Batch):
                answer = _written(answer, slabs[slab])
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
