"""What a border is: the recipe's section of its name, a word of the plan, and a pure function from state to state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.schedule import Schedule
from earlybert.pretrain.ticket.ticket import Ticket

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState
    from earlybert.pretrain.plan.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Border:
    """How a stage begins. The fields of a subclass are its numbers; a line in `Recipe` makes it a word of plans.

    A plan's networks and states are folds over its borders: `network` says what the next stage trains, `begin` what its
    engine is filled with.
    """

    # In plans, plan.json and reports; also the name of the recipe's section.
    word: ClassVar[str]
    # What the network is after it, for sentences: "narrowed", "stacked".
    done: ClassVar[str] = ""
    # Words of a plan that it may follow ("" is the plan's beginning) and that may follow it, and why no others may.
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    reason: ClassVar[str] = ""
    # Where else it must stand, said where it does not.
    place: ClassVar[str] = ""
    # Whether its network is cut by the run's ticket.
    needs_ticket: ClassVar[bool] = False

    @property
    def meaning(self) -> str:
        """Its line in the report's glossary."""
        return ""

    def check(self, recipe: "Recipe") -> None:
        """Raises UserError where its numbers do not fit the recipe, whose plan has its word."""

    @property
    def cuts_phase1_at(self) -> Sequence[float] | None:
        """For one that stands inside phase 1: the shares of phase 1's steps at which it happens; else None."""
        return None

    def part_before(self, turn: int) -> str:
        """What the part of phase 1 that ends with its occurrence number `turn` is called."""
        return f"before-{self.word}"

    def budget(self) -> float:
        """Share of each phase's steps that a plan with its word trains for."""
        return 1.0

    def phase1_schedule(self, schedule: Schedule) -> Schedule:
        """Phase 1's learning rates in a plan with its word."""
        return schedule

    def first_network(self, full: NetworkConfig) -> NetworkConfig:
        """What a plan with its word begins with, in place of `full`."""
        return full

    def network(self, before: NetworkConfig, full: NetworkConfig, ticket: Ticket | None, turn: int) -> NetworkConfig:
        """The network after its occurrence number `turn`; `full` is the one that all of the plan's are parts of."""
        return before

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        """What the next stage starts from.

        Args:
            trained: Where the stage before ended; None at the plan's beginning.
            before: The network that was trained, or that the plan begins with.
            after: The network to train.
            initial: The weights that the run begins with, of any full network: fresh ones or a published BERT's.
        """
        raise NotImplementedError
