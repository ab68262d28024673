"""Progress of long work, with the time left: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 60


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
