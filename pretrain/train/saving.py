"""When a stage's checkpoints are written, and what happens where one cannot be."""

from dataclasses import replace

from earlybert.core import ranks
from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.checkpoint.writer import CheckpointWriter
from earlybert.pretrain.ticket.rankings import Ranking
from earlybert.pretrain.train import sanity
from earlybert.pretrain.train.engine import StageEngine


class StageCheckpoints:
    """Checkpoints of the network that an engine trains, each of where `state` is. All ranks call its methods together.

    Args:
        writer: The run's.
        engine: What is saved.
        state: The training loop's own, which that keeps up to date.
        ranking: Of the search, whose sums are saved; those of other stages are empty.
    """

    def __init__(self, writer: CheckpointWriter, engine: StageEngine, state: RunState, ranking: Ranking) -> None:
        self.writer, self.engine, self.state, self.ranking = writer, engine, state, ranking

    def begin(self) -> None:
        """Begins to write where the run is."""
        self.settle()
        sanity.check_state(self.engine)
        optimizer_step, loss_scale = self.engine.optimizer_step(), self.engine.loss_scale_state()
        state = replace(self.state, optimizer_step=optimizer_step, loss_scale=loss_scale)
        self.writer.begin(self.engine.layout, self.engine.optimizer, state, self.ranking.sums)

    def settle(self) -> None:
        """Completes the checkpoint in flight, if any; where that is not possible it says so once and goes on."""
        failure = self.writer.settle() if self.writer.in_flight else None
        if failure is not None and ranks.rank() == 0:
            say(f"a checkpoint could not be written ({failure}); training continues; the next is at its usual step")

    def require(self) -> None:
        """Sees to a complete checkpoint of where the run is, without which it cannot go on; raises UserError."""
        self.settle()
        if self.writer.newest_step == self.state.global_step and not self.state.finished:
            return
        self.begin()
        if (failure := self.writer.settle()) is not None:
            raise UserError(
                f"{self.writer.folder}: the checkpoint at step {self.state.step} of {self.state.stage} could not be "
                f"written ({failure}); free some space and run the same command again"
            )
