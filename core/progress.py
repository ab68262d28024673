"""Progress of long work, with the time left: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

# Of long work, and of the steps of a stage.
SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_STEPS = 60, 10


def say(message: str, *, enabled: bool = True) -> None:
    """A line for whoever watches; what a program might read goes to the standard output instead."""
    if enabled:
        print(message, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def progress(description: str, total: int, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how work goes on; call what is yielded with what has been done since the last call.

    Args:
        description: What is being done.
        total: The work there is, in any unit.
        in_bytes: That unit is a byte, and what is done is shown in megabytes, too.
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(description, total, in_bytes) as advance:
        yield advance


@contextmanager
def _lines(description: str, total: int, in_bytes: bool) -> Iterator[Callable[[int], None]]:
    say(description)
    began = printed = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, printed
        done += amount
        now = time.monotonic()
        if done and now - printed >= SECONDS_BETWEEN_LINES:
            left = (now - began) * (total - done) / done
            size = f", {done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if in_bytes else ""
            say(f"{description}: {done / total:.0%}{size}, {left / 60:.0f} minutes left")
            printed = now

    yield advance


@contextmanager
def _bar(description: str, total: int, in_bytes: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *([DownloadColumn()] if in_bytes else []),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def _bar_of_steps() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Narrow enough for 80 columns: rich would cut the time left off.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, console=Console(stderr=True))


class StageProgress:
    """Progress of one stage with the time left: a bar on a terminal, else a plain line every few seconds."""

    def __init__(self, name: str, total: int, done: int, *, enabled: bool) -> None:
        self.name, self.total, self.enabled = name, total, enabled
        self._first = done
        self._began = self._last_line = time.monotonic()
        self._bar = _bar_of_steps() if enabled and sys.stderr.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def update(self, done: int, note: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self.enabled and (time.monotonic() - self._last_line > SECONDS_BETWEEN_STEPS or done == self.total):
            self._last_line = time.monotonic()
            left = (self.total - done) * (self._last_line - self._began) / max(1, done - self._first)
            say(f"{self.name} {done}/{self.total}  {note}  {clock(left)} left")

    def __enter__(self) -> "StageProgress":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Gives the terminal back as it was."""
        if self._bar is not None:
            self._bar.stop()
