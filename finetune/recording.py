"""Recordings of what a search ranks units by, while the Trainer trains."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from earlybert.core.ranks import rank
from earlybert.pretrain.network.parameters import is_coefficient
from earlybert.pretrain.ticket.rankings import Masters, Ranking
from earlybert.pretrain.ticket.search import MaskHistory, SearchConfig, Snapshot
from earlybert.pretrain.ticket.ticket import TicketRule

RECORDINGS = 20
# In a checkpoint of the Trainer's: what the ranking has made of the updates.
SUMS = "importance.safetensors"


def masters_of(model: nn.Module) -> Masters:
    """The parameters of a network that is trained in fp32."""

    def masters(wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in model.named_parameters():
            if wanted(name):
                yield name, parameter.detach().float().cpu().clone()

    return masters


class Recorder(TrainerCallback):
    """Records what units are ranked by after an update, some twenty times in a search and at its last step."""

    def __init__(self, folder: Path, rule: TicketRule, last_step: int, ranking: Ranking) -> None:
        self.folder, self.rule, self.last_step, self.ranking = folder, rule, last_step, ranking

    def after_backward(self, model: nn.Module, loss_scale: float) -> None:
        """Shows the ranking the gradients of an update, complete and `loss_scale` times too large, not yet clipped."""
        if not self.ranking.sees_gradients:
            return
        gradients = {}
        for name, parameter in model.named_parameters():
            if is_coefficient(name):
                assert parameter.grad is not None
                gradients[name] = (parameter.grad.float() / loss_scale).cpu()
        self.ranking.see(dict(masters_of(model)(is_coefficient)), gradients)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What an attempt recorded beyond its checkpoint is of weights that are gone: those steps are recorded again.
        self.history = MaskHistory(self.folder, self.rule, SearchConfig(), up_to_step=state.global_step)
        if state.global_step and self.ranking.sees_gradients:
            self.ranking.sums = load_file(_checkpoint(args, state) / SUMS)

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        step = state.global_step
        if step % max(1, self.last_step // RECORDINGS) == 0 or step == self.last_step:
            self.history.add(Snapshot.from_masters(step, self.ranking.scores(masters_of(keywords["model"]))))
            if rank() == 0:
                self.history.save()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if rank() == 0 and self.ranking.sees_gradients:
            save_file(self.ranking.sums, _checkpoint(args, state) / SUMS)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
