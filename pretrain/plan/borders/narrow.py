"""The ticket is cut out of the network that was searched (EarlyBERT, Chen et al. 2021, section 3.3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from earlybert.core.errors import UserError, require
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.ticket.ticket import Ticket, narrow_config

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState
    from earlybert.pretrain.plan.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Narrow(Border):
    """What the narrow network starts from and how long it trains.

    Args:
        rewind: start from the "initial" weights (the paper) or carry on with the "searched" weights and moments.
        step_factor: share of each phase's steps that a plan with narrow in it trains for, rounded half up.
    """

    word: ClassVar[str] = "narrow"
    done: ClassVar[str] = "narrowed"
    after: ClassVar[tuple[str, ...]] = ("", "search")
    before: ClassVar[tuple[str, ...]] = ("phase1", "phase2")
    reason: ClassVar[str] = "a narrow network is there to be trained"
    place: ClassVar[str] = "narrow needs search before it, or to come first with a ticket file (--ticket)"
    needs_ticket: ClassVar[bool] = True

    rewind: Literal["initial", "searched"] = "initial"
    step_factor: float = 0.8

    @property
    def meaning(self) -> str:
        start = {"initial": "starts again from its initial weights", "searched": "continues from the searched weights"}
        return f"the network that is left; it {start[self.rewind]}"

    def check(self, recipe: "Recipe") -> None:
        plan = recipe.plan
        if plan[0] == self.word and not recipe.ticket:
            raise UserError(f"plan is {plan}; {self.place}")
        require(0 < self.step_factor <= 1, "narrow.step_factor", self.step_factor, "above 0 and at most 1")
        recipe.draw.check(recipe.model.intermediate_size)
        if recipe.ticket and self.rewind == "searched":
            raise UserError(
                'narrow.rewind is "searched", but with a ticket file nothing is searched; it must be "initial"'
            )
        trained = {"phase1", "phase2"} & set(plan[: plan.index(self.word)])
        if trained and self.rewind == "initial":
            raise UserError(
                f'narrow.rewind is "initial", but plan is {plan}; that would throw away what was trained before '
                'the search, so it must be "searched"'
            )
        onward = plan[plan.index(self.word) + 1 :]
        if self.rewind == "searched" and onward[:1] == ["phase2"] and recipe.new_positions == "repeated":
            raise UserError(
                f'new_positions is "repeated", but plan is {plan}; phase 2 begins with narrow, which repeats no '
                "positions; give --new_positions initial"
            )

    def budget(self) -> float:
        return self.step_factor

    def network(self, before: NetworkConfig, full: NetworkConfig, ticket: Ticket | None, turn: int) -> NetworkConfig:
        assert ticket is not None
        return narrow_config(before, ticket)

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        """Cut from the initial weights again, or from the searched ones with their moments, coefficients baked in."""
        from earlybert.pretrain.network.state import TrainingState
        from earlybert.pretrain.network.surgery import bake_coefficients, narrow_weights

        kept = after.kept_units
        assert kept is not None
        if self.rewind == "initial":
            return TrainingState(narrow_weights(before, initial(before), kept))
        assert trained is not None
        weights, moments = bake_coefficients(trained.weights, trained.moments)
        return TrainingState(
            narrow_weights(before, weights, kept),
            {moment: narrow_weights(before, tensors, kept) for moment, tensors in moments.items()},
            trained.optimizer_step,
        )
