"""Recordings of the coefficients while a search goes on."""

import torch

from earlybert.core import distributed, ranks
from earlybert.core.progress import say
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.network.parameters import is_coefficient
from earlybert.pretrain.ticket.search import MaskHistory, Snapshot
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.telemetry import Telemetry


class CoefficientRecorder:
    """Records an engine's coefficient masters into a history, each at the step where `state` is.

    All ranks call its methods together; rank 0 writes.
    """

    def __init__(self, history: MaskHistory, engine: StageEngine, telemetry: Telemetry, state: RunState) -> None:
        self.history, self.engine, self.telemetry, self.state = history, engine, telemetry, state

    def record(self) -> bool:
        """Gathers and stores the coefficients; returns whether the masks have settled."""
        history, state = self.history, self.state
        snapshot = Snapshot.from_masters(state.step, self.engine.gather(is_coefficient))
        history.add(snapshot)
        if ranks.rank() == 0:
            try:
                history.save()
            except OSError as error:
                reason = f"a recording of the coefficients could not be written ({error})"
                say(f"{reason}; it is tried again with the next one")
        for units, values in (("heads", snapshot.heads_LU), ("neurons", snapshot.neurons_LU)):
            self.telemetry.histogram(f"coefficients/{units}", torch.from_numpy(values), state.global_step)
        if len(history.steps) > 1:
            self.telemetry.mask_distances(history.steps, history.matrices(), state.global_step)
            newest = {units: distances[-1] for units, distances in history.newest_distances().items()}
            line = {"stage": state.stage, "step": state.step, **newest}
            self.telemetry.scalars("mask_distance", state.global_step, line)
        return history.settled()

    def finish(self) -> None:
        """Makes sure that what the ticket is drawn from is on disk, before a checkpoint says the search is over."""
        if self.history.steps[-1] != self.state.step:
            self.record()
        distributed.on_rank_0(self.history.save)
