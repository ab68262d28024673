"""A narrow network gets cut units back while it trains, and at first computes what it did.

Net2Net (Chen et al. 2016) keeps the function by copies; here nothing leads out of a new unit at first.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from earlybert.core.errors import UserError, require
from earlybert.pretrain.network.config import KeptIndices, NarrowUnits, NetworkConfig, dense_config
from earlybert.pretrain.network.facts import UNITS, Unit
from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.ticket.ticket import Ratios, Ticket, TicketRule

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState
    from earlybert.pretrain.plan.recipe import Recipe

Width = Literal["all_heads", "all_neurons", "full"]
# Which units are all there, at each width.
WHOLE: dict[Width, tuple[Unit, ...]] = {"all_heads": ("heads",), "all_neurons": ("neurons",), "full": UNITS}
# The shares that stay cut at the width of a wider ticket.
SHARES: dict[str, Unit] = {"head_ratio": "heads", "neuron_ratio": "neurons"}


@dataclass(frozen=True, kw_only=True)
class Widen(Border):
    """How phase 1 gives cut units back; read where the plan has widen in it.

    Args:
        until: share of phase 1's steps at which each widen happens.
        to: what each widen gives back, "all_heads", "all_neurons" or "full" for both; without a list it is full. With
            {head_ratio: 0.2, neuron_ratio: 0.1} those of a wider ticket, of which these shares stay cut; what is left
            out stays as it was. It is drawn together with the ticket, in the same order of units.
        moments: the optimizer's are "reset", or "copied" with zeros for the units that come back. Copied, its step
            count goes on: what is new then moves further in its first steps.
    """

    word: ClassVar[str] = "widen"
    done: ClassVar[str] = "widened"
    after: ClassVar[tuple[str, ...]] = ("phase1",)
    before: ClassVar[tuple[str, ...]] = ("phase1",)
    reason: ClassVar[str] = "a wider network is there to be trained"

    until: list[float] = field(default_factory=list)
    to: list[Width | dict[str, float]] = field(default_factory=list)
    moments: Literal["reset", "copied"] = "reset"

    @property
    def meaning(self) -> str:
        return "give cut heads and neurons back: initial weights lead into them, and at first they change nothing"

    def check(self, recipe: "Recipe") -> None:
        plan = recipe.plan
        if "narrow" not in plan[: plan.index(self.word)]:
            raise UserError(f"plan is {plan}; widen needs narrow before it, which cuts what comes back")
        times = plan.count(self.word)
        expected = f"one of {', '.join(WHOLE)}, or {{neuron_ratio: 0.1}}, for each widen of the plan, {times}"
        require(len(self.to) in (0, times), "widen.to", self.to, expected)
        cut = {"head_ratio": recipe.draw.head_ratio, "neuron_ratio": recipe.draw.neuron_ratio}
        if recipe.ticket:  # A file has its own, and the wider ones in it hold its units.
            cut = dict.fromkeys(SHARES, 1.0)
        for turn in range(times):
            left = _shares_left(self.width(turn), f"widen.to[{turn}]")
            if not any(cut[share] for share in left):
                raise UserError(f"widen.to is {self.to or ['full']}; widen number {turn + 1} has no units to give back")
            for share, value in left.items():
                most = cut[share]
                expected = f"at least 0 and below {most:g}, which is cut before it: widening only gives units back"
                require(0 <= value < most or value == most == 0, f"widen.to[{turn}].{share}", value, expected)
            cut |= left

    def width(self, turn: int) -> Width | dict[str, float]:
        """What occurrence number `turn` widens to."""
        return self.to[turn] if self.to else "full"

    def wider_tickets(self, rule: TicketRule) -> list[Ratios]:
        """Shares that stay cut in each of the wider tickets that it widens one of this rule to."""
        shares, found = {"head_ratio": rule.head_ratio, "neuron_ratio": rule.neuron_ratio}, []
        for width in self.to:
            if isinstance(width, dict):
                shares |= width
                found.append((shares["head_ratio"], shares["neuron_ratio"]))
        return found

    @property
    def cuts_phase1_at(self) -> Sequence[float]:
        return self.until

    def part_before(self, turn: int) -> str:
        return "narrow" if len(self.until) == 1 else f"narrow-{turn + 1}"

    def network(self, before: NetworkConfig, full: NetworkConfig, ticket: Ticket | None, turn: int) -> NetworkConfig:
        kept = before.kept_units
        if kept is None:  # the ticket cut nothing
            return before
        dense, width, wider = dense_config(before), self.width(turn), before.wider
        everything = NarrowUnits(_all_units(dense.heads), _all_units(dense.neurons))
        if isinstance(width, dict):
            target, *rest = wider
            wider = tuple(rest)
        else:
            chosen = (getattr(everything if unit in WHOLE[width] else kept, unit) for unit in UNITS)
            target = NarrowUnits(*chosen)
        after = NarrowUnits(*(_together(*pair) for pair in zip(kept, target, strict=True)))
        if after == everything:
            return dense
        return dataclasses.replace(before, kept_heads=after.heads, kept_neurons=after.neurons, wider=wider)

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


def _shares_left(width: Width | dict[str, float], name: str) -> dict[str, float]:
    """The shares that a width leaves cut, of those that it changes; raises UserError for others."""
    if not isinstance(width, dict):
        return {share: 0.0 for share, unit in SHARES.items() if unit in WHOLE[width]}
    if not width or not width.keys() <= SHARES.keys():
        raise UserError(f"{name} is {width}; it must have {' or '.join(SHARES)}, or be one of {', '.join(WHOLE)}")
    return width


def _together(first: KeptIndices, second: KeptIndices) -> KeptIndices:
    return tuple(tuple(sorted({*one, *other})) for one, other in zip(first, second, strict=True))


def _all_units(widths: Sequence[int]) -> KeptIndices:
    return tuple(tuple(range(width)) for width in widths)
