"""Recordings, while a search goes on, of what it ranks units by."""

from functools import partial

import torch
from torch import Tensor

from earlybert.core import distributed, ranks
from earlybert.core.progress import say
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.network.parameters import is_coefficient
from earlybert.pretrain.network.state import Weights
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.ticket.rankings import Ranking, Scores, make_ranking
from earlybert.pretrain.ticket.search import MaskHistory, Snapshot
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.telemetry import Telemetry


def search_ranking(recipe: Recipe, importance: Weights) -> Ranking:
    """The recipe's, where an interrupted search has added up this importance so far."""
    ranking = make_ranking(recipe.draw.ranking, recipe.search.lambda_heads, recipe.search.lambda_neurons)
    ranking.sums = dict(importance)
    return ranking


class CoefficientGradients:
    """Gradients of each step's loss by the coefficients, added up as the micro-batches' are computed.

    Where DeepSpeed keeps them depends on the ZeRO stage, and after the update they are gone.
    """

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self._sums: Scores = {}
        self._loss_scale = engine.loss_scale()
        for name, parameter in engine.engine.module.named_parameters():
            if is_coefficient(name):
                parameter.register_hook(partial(self._add, name))

    def _add(self, name: str, gradient_U: Tensor) -> None:
        # A copy: the parameter keeps the tensor, and it is clipped in place.
        own_U = gradient_U.detach().to(torch.float32, copy=True)
        self._sums[name] = self._sums[name] + own_U if name in self._sums else own_U

    def taken(self) -> Scores:
        """Those of the step that was just made: of the mean over the global batch, not clipped, fp32 on the CPU.

        The next step's begin at zero. All ranks must call it, after every step.
        """
        names = sorted(self._sums)
        sums = torch.cat([self._sums[name] for name in names])
        # DeepSpeed takes the mean over ranks, and has multiplied the loss.
        total = distributed.sum_over_ranks(sums).cpu() / (ranks.world_size() * self._loss_scale)
        pieces = total.split([len(self._sums[name]) for name in names])
        self._sums.clear()
        # A step may end with another scale for the next one.
        self._loss_scale = self._engine.loss_scale()
        return dict(zip(names, pieces, strict=True))


class SearchRecorder:
    """Records what a ranking says of an engine's units into a history, each at the step where `state` is.

    All ranks call its methods together; rank 0 writes.
    """

    def __init__(
        self, history: MaskHistory, ranking: Ranking, engine: StageEngine, telemetry: Telemetry, state: RunState
    ) -> None:
        self.history, self.ranking = history, ranking
        self.engine, self.telemetry, self.state = engine, telemetry, state
        if ranking.sees_gradients:
            self._gradients = CoefficientGradients(engine)
            self._coefficients = dict(engine.masters(is_coefficient))
            ranking.sums = ranking.sums or ranking.scores(engine.masters)

    def after_step(self, *, updated: bool) -> None:
        """Shows the ranking the step that was just made, unless it changed nothing."""
        if not self.ranking.sees_gradients:
            return
        gradients = self._gradients.taken()
        if updated:
            self.ranking.see(self._coefficients, gradients)
            self._coefficients = dict(self.engine.masters(is_coefficient))

    def record(self) -> bool:
        """Stores what units are ranked by; returns whether the masks have settled."""
        history, state = self.history, self.state
        snapshot = Snapshot.from_masters(state.step, self.ranking.scores(self.engine.masters))
        history.add(snapshot)
        if ranks.rank() == 0:
            try:
                history.save()
            except OSError as error:
                reason = f"a recording of the {self.ranking.title} could not be written ({error})"
                say(f"{reason}; it is tried again with the next one")
        for units, values in (("heads", snapshot.heads_LU), ("neurons", snapshot.neurons_LU)):
            self.telemetry.histogram(f"{self.ranking.title}/{units}", torch.from_numpy(values), state.global_step)
        if len(history.steps) > 1:
            self.telemetry.mask_distances(history.steps, history.matrices, state.global_step)
            newest = {units: distances[-1] for units, distances in history.newest_distances().items()}
            line = {"stage": state.stage, "step": state.step, **newest}
            self.telemetry.scalars("mask_distance", state.global_step, line)
        return history.settled()

    def finish(self) -> None:
        """Makes sure that what the ticket is drawn from is on disk, before a checkpoint says the search is over."""
        if self.history.steps[-1] != self.state.step:
            self.record()
        distributed.on_rank_0(self.history.save)
