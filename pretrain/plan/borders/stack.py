"""The network grows in depth while it trains (StackingBERT, Gong et al. 2019)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

from earlybert.core.errors import UserError, require
from earlybert.pretrain.network.config import NetworkConfig, dense_config
from earlybert.pretrain.network.depth import Copy, source_layers
from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.plan.schedule import Schedule
from earlybert.pretrain.ticket.ticket import Ticket

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState
    from earlybert.pretrain.plan.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Stack(Border):
    """How phase 1 grows the network in depth (Gong et al. 2019); read where the plan has stack in it.

    Args:
        layers: depth before each stack; it must divide the next one, the last one model.num_layers.
        until: share of phase 1's steps at which each stack happens.
        copy: "stacked" puts the block on top of itself (the paper), "interleaved" every layer on top of itself,
            "identity" adds layers that at first change nothing.
        moments: the optimizer's are "reset" (the paper) or "copied" with the layers. Copied, its step count goes on:
            what is new then (identity's layers, a search's coefficients) moves further in its first steps.
        learning_rates: learning rate at each stack and at the end of phase 1, straight lines between (the paper);
            without them phase 1 has the one curve of the schedule, whatever happens in it.
    """

    word: ClassVar[str] = "stack"
    done: ClassVar[str] = "stacked"
    after: ClassVar[tuple[str, ...]] = ("phase1",)
    before: ClassVar[tuple[str, ...]] = ("phase1", "search")
    reason: ClassVar[str] = "a deeper network is there to be trained or searched"

    layers: list[int] = field(default_factory=list)
    until: list[float] = field(default_factory=list)
    copy: Copy = "stacked"
    moments: Literal["reset", "copied"] = "reset"
    learning_rates: list[float] = field(default_factory=list)

    @property
    def meaning(self) -> str:
        how = {
            "stacked": "its layers are copied on top of themselves",
            "interleaved": "every layer is copied on top of itself",
            "identity": "it gets new layers on top, which at first change nothing",
        }
        return f"grow the network in depth: {how[self.copy]}; a copy of a narrow layer keeps its units"

    def check(self, recipe: "Recipe") -> None:
        stacks, rates = recipe.plan.count(self.word), self.learning_rates
        expected = f"one number for each stack of the plan, {stacks}"
        require(len(self.layers) == stacks, "stack.layers", self.layers, expected)
        for before, after in pairwise([*self.layers, recipe.model.num_layers]):
            if not 1 <= before < after or after % before:
                raise UserError(
                    f"stack.layers is {self.layers}; each must be a proper divisor of the next one, the last of "
                    f"model.num_layers, {recipe.model.num_layers}"
                )
        if rates:
            expected = f"one number a part of phase 1, {stacks + 1}"
            require(len(rates) == stacks + 1, "stack.learning_rates", rates, expected)
            require(min(rates) >= 0, "stack.learning_rates", rates, "at least 0 each")

    @property
    def cuts_phase1_at(self) -> Sequence[float]:
        return self.until

    def part_before(self, turn: int) -> str:
        return f"{self.layers[turn]}-layers"

    def phase1_schedule(self, schedule: Schedule) -> Schedule:
        """Through `learning_rates`, if there are any."""
        if not self.learning_rates:
            return schedule
        return schedule.through([*self.until, 1.0], self.learning_rates, "stack.learning_rates")

    def first_network(self, full: NetworkConfig) -> NetworkConfig:
        return dataclasses.replace(full, num_hidden_layers=self.layers[0])

    def network(self, before: NetworkConfig, full: NetworkConfig, ticket: Ticket | None, turn: int) -> NetworkConfig:
        """The next depth; every copy of a layer keeps the units that the layer keeps."""
        depth = [*self.layers, full.num_hidden_layers][turn + 1]
        sources = source_layers(before.num_hidden_layers, depth, self.copy)
        deeper = dataclasses.replace(before, num_hidden_layers=depth)
        if (kept := before.kept_units) is None:
            return deeper
        heads, neurons = kept.of_layers(sources)
        wider = tuple(each.of_layers(sources) for each in before.wider)
        return dataclasses.replace(deeper, kept_heads=heads, kept_neurons=neurons, wider=wider)

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        """Layers are copies of the trained ones; the optimizer starts afresh or goes on."""
        from earlybert.pretrain.network.state import TrainingState
        from earlybert.pretrain.network.surgery import identity_layers, narrow_weights, stack_weights

        assert trained is not None
        fresh = initial(dense_config(after))
        if after.kept_units is not None:
            fresh = narrow_weights(dense_config(after), fresh, after.kept_units)
        if self.copy == "identity":
            fresh = identity_layers(fresh, before.num_hidden_layers)
        weights = stack_weights(trained.weights, fresh, self.copy)
        if self.moments == "reset":
            return TrainingState(weights)
        zeros = {name: tensor.new_zeros(tensor.shape) for name, tensor in fresh.items()}
        moments = {moment: stack_weights(tensors, zeros, self.copy) for moment, tensors in trained.moments.items()}
        return TrainingState(weights, moments, trained.optimizer_step)
