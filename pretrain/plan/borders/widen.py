"""A narrow network gets cut units back while it trains, and at first computes what it did.

Net2Net (Chen et al. 2016) keeps the function by copies; here nothing leads out of a new unit at first.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from earlybert.core.errors import UserError, require
from earlybert.pretrain.network.config import KeptIndices, NetworkConfig, dense_config
from earlybert.pretrain.network.facts import UNITS, Unit
from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.ticket.ticket import Ticket

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState
    from earlybert.pretrain.plan.recipe import Recipe

Width = Literal["all_heads", "all_neurons", "full"]
# Which units are all there, at each width.
WHOLE: dict[Width, tuple[Unit, ...]] = {"all_heads": ("heads",), "all_neurons": ("neurons",), "full": UNITS}


@dataclass(frozen=True, kw_only=True)
class Widen(Border):
    """How phase 1 gives cut units back; read where the plan has widen in it.

    Args:
        until: share of phase 1's steps at which each widen happens.
        to: what each widen gives back, "all_heads", "all_neurons" or "full" for both; without a list it is full.
        moments: the optimizer's are "reset", or "copied" with zeros for the units that come back. Copied, its step
            count goes on: what is new then moves further in its first steps.
    """

    word: ClassVar[str] = "widen"
    done: ClassVar[str] = "widened"
    after: ClassVar[tuple[str, ...]] = ("phase1",)
    before: ClassVar[tuple[str, ...]] = ("phase1",)
    reason: ClassVar[str] = "a wider network is there to be trained"

    until: list[float] = field(default_factory=list)
    to: list[Width] = field(default_factory=list)
    moments: Literal["reset", "copied"] = "reset"

    @property
    def meaning(self) -> str:
        return "give cut heads and neurons back: initial weights lead into them, and at first they change nothing"

    def check(self, recipe: "Recipe") -> None:
        plan = recipe.plan
        if "narrow" not in plan[: plan.index(self.word)]:
            raise UserError(f"plan is {plan}; widen needs narrow before it, which cuts what comes back")
        times = plan.count(self.word)
        expected = f"one of {', '.join(WHOLE)} for each widen of the plan, {times}"
        require(len(self.to) in (0, times), "widen.to", self.to, expected)
        cut: set[Unit] = set(UNITS)
        for turn in range(times):
            if not cut & set(WHOLE[self.width(turn)]):
                raise UserError(f"widen.to is {self.to or ['full']}; widen number {turn + 1} has no units to give back")
            cut -= set(WHOLE[self.width(turn)])

    def width(self, turn: int) -> Width:
        """What occurrence number `turn` widens to."""
        return self.to[turn] if self.to else "full"

    @property
    def cuts_phase1_at(self) -> Sequence[float]:
        return self.until

    def part_before(self, turn: int) -> str:
        return "narrow" if len(self.until) == 1 else f"narrow-{turn + 1}"

    def network(self, before: NetworkConfig, full: NetworkConfig, ticket: Ticket | None, turn: int) -> NetworkConfig:
        kept = before.kept_units
        if kept is None:  # the ticket cut nothing
            return before
        dense, whole = dense_config(before), WHOLE[self.width(turn)]
        heads = _all_units(dense.heads) if "heads" in whole else kept.heads
        neurons = _all_units(dense.neurons) if "neurons" in whole else kept.neurons
        if (heads, neurons) == (_all_units(dense.heads), _all_units(dense.neurons)):
            return dataclasses.replace(dense, ticket_sha256=None)
        return dataclasses.replace(before, kept_heads=heads, kept_neurons=neurons)

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        """Kept units in their own places as they are trained; the others as they began, with nothing leading out."""
        from earlybert.pretrain.network.state import TrainingState
        from earlybert.pretrain.network.surgery import silent_units, widen_network

        assert trained is not None
        new = silent_units(initial(dense_config(after)))
        weights = widen_network(before, after, trained.weights, new)
        if self.moments == "reset":
            return TrainingState(weights)
        moments = {moment: widen_network(before, after, each) for moment, each in trained.moments.items()}
        return TrainingState(weights, moments, trained.optimizer_step)


def _all_units(widths: Sequence[int]) -> KeptIndices:
    return tuple(tuple(range(width)) for width in widths)
