"""A network that is trained already gets its coefficients, so that its ticket is drawn when units differ."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from earlybert.core.errors import UserError
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.borders.border import Border

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState
    from earlybert.pretrain.plan.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Coefficients(Border):
    """When a search in the middle of phase 1 begins; read where the plan has coefficients in it.

    Args:
        until: share of phase 1's steps at which the search begins.
    """

    word: ClassVar[str] = "coefficients"
    done: ClassVar[str] = "given coefficients"
    after: ClassVar[tuple[str, ...]] = ("phase1",)
    before: ClassVar[tuple[str, ...]] = ("search",)
    reason: ClassVar[str] = "coefficients are there to be searched"

    until: list[float] = field(default_factory=list)

    @property
    def meaning(self) -> str:
        return "every head and neuron of the trained network gets its coefficient, which is 1; the search begins"

    def check(self, recipe: "Recipe") -> None:
        plan = recipe.plan
        if "narrow" in plan[: plan.index(self.word)]:
            raise UserError(f"plan is {plan}; coefficients must come before narrow, whose ticket they are for")

    @property
    def cuts_phase1_at(self) -> Sequence[float]:
        return self.until

    def part_before(self, turn: int) -> str:
        return "before-search"

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        """The trained weights; the optimizer starts afresh, so that no part of it is older than the coefficients."""
        from earlybert.pretrain.network.state import TrainingState

        assert trained is not None
        return TrainingState(initial(after) | dict(trained.weights))
