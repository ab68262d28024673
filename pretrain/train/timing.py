"""Where a run's time goes: data, forward and backward pass, communication, optimizer, checkpoint, validation."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import deepspeed.comm.comm
import torch

from earlybert.core.devices import synchronize

Item = TypeVar("Item")
# One step of so many is taken apart, and nothing in it overlaps; the others go undisturbed.
STEPS_PER_SAMPLE = 10
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")


class StepTimes:
    """Mean seconds that an optimizer step of one stage takes on this rank, by part.

    `data`, `checkpoint` and `validation` are what the training loop waits for, measured always; `data` only where the
    device has nothing else to do meanwhile. `forward_backward`, `communication` (DeepSpeed's collectives: gradients and
    weights) and `optimizer` are those of the sampled steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sampling = False
        self._waited = {"data": 0.0, "checkpoint": 0.0, "validation": 0.0}
        self._newly_waited_for_data = 0.0
        # Between which moments the device had nothing to do but to wait for data.
        self._idle: list[tuple[Any, Any]] = []
        self._computed: dict[str, float] = {}
        self._steps = 0

    def newly_waited_for_data(self) -> float:
        """Seconds since this was last asked."""
        self._count_idle()
        seconds, self._newly_waited_for_data = self._newly_waited_for_data, 0.0
        return seconds

    @contextmanager
    def waiting(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waited[part] += time.perf_counter() - began

    def waiting_for_data(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; waiting for each of them counts, as far as the device is done with what it was given."""
        remaining = iter(items)
        while True:
            began = self._moment()
            item = next(remaining, None)
            self._idle.append((began, self._moment()))
            if item is None:
                return
            yield item

    def _moment(self) -> Any:
        """When the device is done with what it was given: on a GPU an event, as the host is ahead of it."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _count_idle(self) -> None:
        for began, ended in self._idle:
            if self._device.type == "cuda":
                ended.synchronize()
                seconds = began.elapsed_time(ended) / 1000
            else:
                seconds = ended - began
            self._waited["data"] += seconds
            self._newly_waited_for_data += seconds
        self._idle.clear()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around optimizer step 0, 1, ... of the stage."""
        self._steps += 1
        self._sampling = number % STEPS_PER_SAMPLE == 0
        if not self._sampling:
            yield
            return
        self._computed = dict.fromkeys(("forward_backward", "communication", "optimizer"), 0.0)
        with self._collectives(), self.computing("forward_backward"):
            yield
        self._sampling = False

    @contextmanager
    def computing(self, part: str) -> Iterator[None]:
        """A part of a sampled step; what is nested in another part, or waited for, does not count there."""
        if not self._sampling:
            yield
            return
        before = self._counted()
        began = self._now()
        yield
        elapsed = self._now() - began
        self._computed[part] += elapsed - (self._counted() - before)

    def _counted(self) -> float:
        self._count_idle()
        return sum(self._computed.values()) + sum(self._waited.values())

    def taken(self) -> dict[str, float] | None:
        """The means since they were last taken, once a step was sampled; else None."""
        if not self._computed:
            return None
        self._count_idle()
        means = {part: seconds / self._steps for part, seconds in self._waited.items()} | self._computed
        self._waited, self._computed, self._steps = dict.fromkeys(self._waited, 0.0), {}, 0
        return means

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def _collectives(self) -> Iterator[None]:
        """All of DeepSpeed's communication goes through one object, which this replaces by a timed one."""
        backend = deepspeed.comm.comm.cdb
        deepspeed.comm.comm.cdb = _TimedBackend(backend, self)
        try:
            yield
        finally:
            deepspeed.comm.comm.cdb = backend


class _TimedBackend:
    """A communication backend whose collectives are measured, and waited for."""

    def __init__(self, backend: Any, times: StepTimes) -> None:
        self._backend, self._times = backend, times

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return self._timed(found) if name in COLLECTIVES else found

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._times.computing("communication"):
                work = collective(*arguments, **options)
                if work is not None:
                    work.wait()
                return work

        return call
