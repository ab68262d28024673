"""What training costs: synchronised time of every update, data loading excluded, and time by the clock."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from earlybert.core.devices import synchronize


@dataclass(frozen=True)
class Cost:
    """The updates of one run of the Trainer.

    `compute`: seconds of forward and backward, which is what the paper times; `update`: the same with clipping and the
    optimizer. Means over all updates. `clock`: seconds from the first to the last, with loading and copying to the GPU.
    """

    steps: int
    compute: float
    update: float
    clock: float


class StepClock(TrainerCallback, ExportableState):
    """Reads the clock around what the Trainer does; its sums go into the Trainer's checkpoints."""

    def __init__(self) -> None:
        self.steps = 0
        self.compute = self.update = self.clock = 0.0
        self._device = torch.device("cpu")
        self._last = self._forward_began = self._backward_ended = 0.0

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def forward_begins(self, device: torch.device) -> None:
        self._device = device
        self._forward_began = self._now()

    def backward_ends(self) -> None:
        self._backward_ended = self._now()
        seconds = self._backward_ended - self._forward_began
        self.compute += seconds
        self.update += seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = self._now()
        self.update += now - self._backward_ended
        self.clock += now - self._last
        self.steps += 1
        self._last = now

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {name: vars(self)[name] for name in ("steps", "compute", "update", "clock")}}

    def cost(self) -> Cost:
        steps = max(1, self.steps)
        return Cost(self.steps, self.compute / steps, self.update / steps, self.clock)
