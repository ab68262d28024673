"""What a search ranks heads and neurons by: one number for each, of which the smallest are cut.

| ranking | number of a unit |
|---|---|
| coefficient | its coefficient, of which the magnitude counts (EarlyBERT section 3.2) |
| importance | abs(gradient x coefficient) summed over the search's updates (Michel et al. 2019, section 4.1) |
| weights | Euclidean norm of all its weights: a head's query, key, value and output, a neuron's two vectors |

Shape suffixes: U units (heads or neurons) in a layer.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from earlybert.core.distributed import rank
from earlybert.pretrain.network.parameters import facts_of, is_coefficient, layer_of
from earlybert.pretrain.ticket.search import MaskHistory, Snapshot

RankingName = Literal["coefficient", "importance", "weights"]
# By the name of the coefficients, [U] each, fp32 on the CPU.
Scores = dict[str, Tensor]

RECORDINGS = 20
IMPORTANCE = "importance.safetensors"


def coefficients_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those of a searching network by name."""
    return {name: parameter for name, parameter in model.named_parameters() if is_coefficient(name)}


class Ranking:
    """By coefficients; the others differ from it."""

    def after_backward(self, model: nn.Module, loss_scale: float) -> None:
        """Looks at the gradients of an update, complete and `loss_scale` times too large, before they are clipped."""

    def scores(self, model: nn.Module) -> Scores:
        """All units' numbers as they are now."""
        return {name: own_U.detach().float().cpu().clone() for name, own_U in coefficients_of(model).items()}

    def save(self, checkpoint: Path) -> None:
        """Puts what it has seen into a checkpoint of the Trainer's."""

    def load(self, checkpoint: Path) -> None:
        """Takes it from there."""


class Weights(Ranking):
    """By the norm of a unit's weights, biases left out."""

    def scores(self, model: nn.Module) -> Scores:
        names = {(layer_of(name), facts_of(name).unit): name for name in coefficients_of(model)}
        squares: Scores = {}
        for name, parameter in model.named_parameters():
            facts = facts_of(name)
            if facts.role != "weight" or facts.unit_axis is None:
                continue
            own = names[layer_of(name), facts.unit]
            units = len(model.get_parameter(own))
            # A head has several rows, and those of query, key and value.
            rows = parameter.detach().float().movedim(facts.unit_axis, 0)
            square_U = rows.reshape(facts.row_blocks, units, -1).square().sum((0, 2)).cpu()
            squares[own] = squares.get(own, torch.zeros(units)) + square_U
        return {name: square_U.sqrt() for name, square_U in squares.items()}


class Importance(Ranking):
    """By what the loss would change, to first order, if the unit were cut: summed over the search.

    The loss is an update's mean over its examples; the L1 term, whose gradient is known, is taken out again.
    """

    def __init__(self, lambda_heads: float, lambda_neurons: float) -> None:
        self.strengths = {"heads": lambda_heads, "neurons": lambda_neurons}
        self.sums: Scores = {}

    def after_backward(self, model: nn.Module, loss_scale: float) -> None:
        changes: Scores = {}
        for name, parameter in coefficients_of(model).items():
            unit = facts_of(name).unit
            assert parameter.grad is not None and unit is not None
            own_U = parameter.detach().float()
            gradient_U = parameter.grad.float() / loss_scale - self.strengths[unit] * own_U.sign()
            changes[name] = (gradient_U * own_U).abs().cpu()
        # The optimizer makes no step either where fp16 overflowed.
        if all(change_U.isfinite().all() for change_U in changes.values()):
            self.sums = {name: self.sums.get(name, 0) + change_U for name, change_U in changes.items()}

    def scores(self, model: nn.Module) -> Scores:
        return dict(self.sums)

    def save(self, checkpoint: Path) -> None:
        save_file(self.sums, checkpoint / IMPORTANCE)

    def load(self, checkpoint: Path) -> None:
        self.sums = load_file(checkpoint / IMPORTANCE)


def make_ranking(name: RankingName, lambda_heads: float, lambda_neurons: float) -> Ranking:
    """The ranking of this name for a search with these strengths of the L1 term."""
    if name == "importance":
        return Importance(lambda_heads, lambda_neurons)
    return Weights() if name == "weights" else Ranking()


class Recorder(TrainerCallback):
    """Records what units are ranked by after an update, some twenty times in a search and at its last step."""

    def __init__(self, history: MaskHistory, last_step: int, ranking: Ranking) -> None:
        self.history, self.last_step, self.ranking = history, last_step, ranking

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            self.ranking.load(_checkpoint(args, state))

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        step = state.global_step
        if step % max(1, self.last_step // RECORDINGS) == 0 or step == self.last_step:
            if step not in self.history.steps:
                self.history.add(Snapshot.from_masters(step, self.ranking.scores(keywords["model"])))
            if rank() == 0:
                self.history.save()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if rank() == 0:
            self.ranking.save(_checkpoint(args, state))


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
