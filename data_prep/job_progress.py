"""How far a job is, told by itself while it runs; whoever runs jobs counts it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")

# Of the job that this process is doing: what takes its share, and which portion of the job is being done.
_listener: Callable[[float], None] | None = None
_portion = (0.0, 1.0)


def tell(share: float) -> None:
    """From within a job: this much of it, or of the portion at hand, is done; 0 to 1."""
    begin, end = _portion
    if _listener is not None:
        _listener(begin + (end - begin) * min(max(share, 0.0), 1.0))


@contextmanager
def portion(begin: float, end: float) -> Iterator[None]:
    """What is told inside is of this portion of the job."""
    global _portion
    before, _portion = _portion, (begin, end)
    try:
        yield
    finally:
        _portion = before


def counted(function: Callable[..., Result], job: tuple[Any, ...], weight: int, count: Callable[[int], None]) -> Result:
    """`function(*job)`; what it does of its `weight` goes to `count` on the way, and the rest when it is done."""
    global _listener
    told = 0

    def listen(share: float) -> None:
        nonlocal told
        if (more := int(weight * share) - told) > 0:
            told += more
            count(more)

    _listener = listen
    try:
        result = function(*job)
    finally:
        _listener = None
    count(weight - told)
    return result
