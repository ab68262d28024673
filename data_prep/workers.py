"""Jobs on several processes. What a job gives depends on its arguments alone, so their number never shows in it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from earlybert.core.errors import UserError
from earlybert.core.progress import progress
from earlybert.data_prep.dask_engine import DaskEngine
from earlybert.data_prep.job_progress import counted

Result = TypeVar("Result")
# Between two looks at how far the jobs of other processes are.
SECONDS_BETWEEN_LOOKS = 0.5
# In a process of a pool: what all of them have done of their jobs' weights, shared with the one that shows it.
_done: Any = None


class Workers:
    """A pool of processes, or a Dask engine; with one worker everything runs in this process.

    To be used in a `with` statement.
    """

    def __init__(self, count: int, dask: str | None = None) -> None:
        """Connect to the Dask engine, if one is named, else start nothing yet: processes come with the first jobs."""
        if count < 1:
            raise UserError(f"workers is {count}, but must be at least 1.")
        if dask and count > 1:
            raise UserError(f"workers is {count}, but dask is {dask}, which has workers of its own; leave one out.")
        # Spawned, as a fork of a process with threads (tokenizers, PyTorch) may never return from a lock.
        context = multiprocessing.get_context("spawn")
        self._dask = DaskEngine(dask) if dask else None
        self._done, self._shown = context.Value("q") if count > 1 else None, 0
        self._pool = self._dask or (
            ProcessPoolExecutor(count, context, initializer=_start_counting, initargs=(self._done,))
            if count > 1
            else None
        )
        self._lost: tuple[type[BaseException], ...] = (BrokenProcessPool, *(self._dask.lost if self._dask else ()))
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if error is not None and self._dask is None:
            # Files are complete or absent, so jobs may end anywhere.
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def everywhere(self, function: Callable[..., Result], *arguments: Any) -> dict[str, Result]:
        """What a function gives on every worker that does not run this program on this machine, by its name."""
        return self._dask.everywhere(function, *arguments) if self._dask else {}

    def run(
        self,
        function: Callable[..., Result],
        jobs: Sequence[tuple[Any, ...]],
        description: str,
        sizes: Iterable[int] | None = None,
        *,
        in_bytes: bool = False,
    ) -> list[Result]:
        """`function(*job)` for every job; the results in the order of the jobs.

        Args:
            function: A function of a module, called in any process.
            jobs: Its arguments.
            description: For the progress bar.
            sizes: How much work each job is, for the progress bar; a job may `tell` how far it is.
            in_bytes: The sizes are bytes.

        Raises:
            UserError: A job failed so, or a process was killed.
        """
        weights = [1] * len(jobs) if sizes is None else [max(1, size) for size in sizes]
        if not jobs:
            return []
        weighed = list(zip(jobs, weights, strict=True))
        with progress(description, sum(weights), in_bytes=in_bytes) as advance:
            if self._pool is None:
                return [counted(function, job, weight, advance) for job, weight in weighed]
            with _interrupts_waiting():
                futures = [self._submit(function, job, weight) for job, weight in weighed]
            weight_of = dict(zip(futures, weights, strict=True))
            waiting = set(futures)
            while waiting:
                ended, waiting = wait(waiting, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
                for future in ended:
                    self._raise_failure(future)
                advance(sum(weight_of[future] for future in ended) if self._dask else self._newly_done())
            return [future.result() for future in futures]

    def _submit(self, function: Callable[..., Result], job: tuple[Any, ...], weight: int) -> "Future[Result]":
        """The workers of a Dask engine, which may be anywhere, tell nothing on the way."""
        assert self._pool is not None
        return self._pool.submit(function, *job) if self._dask else self._pool.submit(_counting, function, job, weight)

    def _newly_done(self) -> int:
        """What the processes have done since this was last asked."""
        assert self._done is not None
        # Not by its lock, which a process that was killed may hold.
        done = self._done.get_obj().value
        new, self._shown = done - self._shown, done
        return new

    def _raise_failure(self, future: Future[Any]) -> None:
        try:
            future.result()
        except self._lost:
            raise UserError(
                "A worker process was killed, probably because memory ran out. Finished work is kept: "
                "run the same command again, with fewer workers if memory is short."
            ) from None


@contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Ctrl-C takes effect afterwards. A process that starts meanwhile is left out of it, as it inherits the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_counting(done: Any) -> None:
    global _done
    _done = done
    start_worker()


def _counting(function: Callable[..., Result], job: tuple[Any, ...], weight: int) -> Result:
    def count(amount: int) -> None:
        with _done.get_lock():
            _done.value += amount

    return counted(function, job, weight, count)


def start_worker() -> None:
    """What a process does first that works for another one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    # One process a core: the libraries' own threads would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
