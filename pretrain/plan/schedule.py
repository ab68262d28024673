"""Learning rates and masks of a stage, and how shares of a phase become whole steps."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from earlybert.core.errors import UserError

Form = Literal["poly", "poly_continuous"]


def whole_steps(steps: int, share: float) -> int:
    """A share of these steps, rounded half up; at least one."""
    return max(1, math.floor(steps * share + 0.5))


@dataclass(frozen=True, kw_only=True)
class MaskSchedule:
    """Which share of the tokens is to be predicted: a straight line over all steps of the phases (Ankner et al. 2023).

    Args:
        first: share in the first step.
        last: share in the last step.
        start: steps of the line that lie before the phase.
        total: steps of the whole line.
    """

    first: float
    last: float
    start: int
    total: int

    def share_at(self, step: int) -> float:
        """The share in step 0, 1, ... of the phase."""
        progress = min(1.0, (self.start + step) / max(1, self.total - 1))
        return self.first + (self.last - self.first) * progress


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A stage's piece of its phase's learning-rate curve.

    Args:
        start: steps of the curve that lie before the stage.
        total: steps of the whole curve, of which the stage may be a part.
        peak: learning rate at the end of warm-up.
        warmup: share of the total over which it rises in a straight line.
        form: after warm-up, both degree 0.5: "poly" is NVIDIA's PolyWarmUp, "poly_continuous" starts at the peak.
        knots: points (step, learning rate); with them the curve is the straight lines between, whatever the form.
    """

    start: int
    total: int
    peak: float
    warmup: float
    form: Form
    knots: tuple[tuple[float, float], ...] = ()

    def through(self, shares: Sequence[float], rates: Sequence[float], name: str) -> "Schedule":
        """Straight lines up to the peak, then to each of these rates at its share of the steps.

        Raises UserError, which calls the rates `name`, where the warm-up does not end before the first of them.
        """
        ends = [float(whole_steps(self.total, share)) for share in shares]
        warm = self.total * self.warmup
        if warm >= ends[0]:
            raise UserError(
                f"phase1.warmup is {self.warmup:g}, {warm:g} steps; with {name} it must end before the first of these "
                f"rates, at step {ends[0]:g}"
            )
        return dataclasses.replace(self, knots=((0.0, 0.0), (warm, self.peak), *zip(ends, rates, strict=True)))

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the stage's step 0, 1, ..."""
        taken = self.start + step + 1
        if self.knots:
            steps, rates = np.array(self.knots).T
            return float(np.interp(taken, steps, rates))
        progress = taken / self.total
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        decay = math.sqrt(max(0.0, 1.0 - progress))
        if self.form == "poly_continuous":
            decay /= math.sqrt(1.0 - self.warmup)
        return self.peak * decay
