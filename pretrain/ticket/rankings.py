"""What a search ranks heads and neurons by: one number for each, of which the smallest are cut.

| ranking | number of a unit |
|---|---|
| coefficient | its coefficient, of which the magnitude counts (EarlyBERT section 3.2) |
| importance | abs(gradient x coefficient) summed over the search's updates (Michel et al. 2019, section 4.1) |
| weights | Euclidean norm of all its weights: a head's query, key, value and output, a neuron's two vectors |

Shape suffixes: U units (heads or neurons) in a layer.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from earlybert.pretrain.network.parameters import facts_of, is_coefficient, layer_of
from earlybert.pretrain.ticket.search import RankingName

if TYPE_CHECKING:
    from torch import Tensor

# By the name of the coefficients, [U] each, fp32 on the CPU.
Scores = dict[str, "Tensor"]
# Gives the parameters whose names are wanted, whole, in fp32 on the CPU, one after the other.
Masters = Callable[[Callable[[str], bool]], Iterable[tuple[str, "Tensor"]]]


class Ranking:
    """By coefficients; the others differ from it.

    Attributes:
        title: what its numbers are called.
        sees_gradients: whether it has to be shown every update.
        sums: what it has made of the updates so far, which checkpoints keep; empty where it need not see them.
    """

    title: ClassVar[str] = "coefficients"
    sees_gradients: ClassVar[bool] = False

    def __init__(self) -> None:
        self.sums: Scores = {}

    def see(self, coefficients: Scores, gradients: Scores) -> None:
        """Looks at an update: coefficients before it, and the loss's gradients, complete and not clipped."""

    def scores(self, masters: Masters) -> Scores:
        """All units' numbers as they are now."""
        return dict(masters(is_coefficient))


class WeightNorm(Ranking):
    """By the norm of a unit's weights, biases left out."""

    title = "weights"

    def scores(self, masters: Masters) -> Scores:
        coefficients = dict(masters(is_coefficient))
        names = {(layer_of(name), facts_of(name).unit): name for name in coefficients}
        squares = {name: own_U.new_zeros(own_U.shape) for name, own_U in coefficients.items()}
        for name, weight in masters(_is_weight_of_units):
            facts = facts_of(name)
            assert facts.unit_axis is not None
            own = names[layer_of(name), facts.unit]
            # A head has several rows, and those of query, key and value.
            rows = weight.movedim(facts.unit_axis, 0).reshape(facts.row_blocks, len(squares[own]), -1)
            squares[own] += rows.square().sum((0, 2))
        return {name: square_U.sqrt() for name, square_U in squares.items()}


def _is_weight_of_units(name: str) -> bool:
    facts = facts_of(name)
    return facts.role == "weight" and facts.unit_axis is not None


class Importance(Ranking):
    """By what the loss would change, to first order, if the unit were cut: summed over the search.

    The loss is an update's mean over its examples; the L1 term, whose gradient is known, is taken out again.
    """

    title = "importance"
    sees_gradients = True

    def __init__(self, lambda_heads: float, lambda_neurons: float) -> None:
        super().__init__()
        self.strengths = {"heads": lambda_heads, "neurons": lambda_neurons}

    def see(self, coefficients: Scores, gradients: Scores) -> None:
        changes: Scores = {}
        for name, own_U in coefficients.items():
            unit = facts_of(name).unit
            assert unit is not None
            changes[name] = ((gradients[name] - self.strengths[unit] * own_U.sign()) * own_U).abs()
        # The optimizer makes no step either where a gradient is not finite.
        if all(change_U.isfinite().all() for change_U in changes.values()):
            self.sums = {name: self.sums.get(name, 0) + change_U for name, change_U in changes.items()}

    def scores(self, masters: Masters) -> Scores:
        return {name: self.sums.get(name, own_U.new_zeros(own_U.shape)) for name, own_U in masters(is_coefficient)}


def make_ranking(name: RankingName, lambda_heads: float, lambda_neurons: float) -> Ranking:
    """The ranking of this name for a search with these strengths of the L1 term; it has seen nothing yet."""
    if name == "importance":
        return Importance(lambda_heads, lambda_neurons)
    return WeightNorm() if name == "weights" else Ranking()
