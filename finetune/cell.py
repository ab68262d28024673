"""One cell of a table: one task, one method, one seed. A cell with a result is done and never computed again."""

import dataclasses
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import wait_for_everyone

from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json
from earlybert.core.progress import clock, say
from earlybert.core.ranks import rank
from earlybert.finetune import methods
from earlybert.finetune.config import Method, TaskSettings
from earlybert.finetune.cost import Cost
from earlybert.finetune.network import TrainedConfig
from earlybert.finetune.pretrained import require_length, require_segments, starting_weights, task_config
from earlybert.finetune.saved import save_trained
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.tasks.task import Task, TaskData
from earlybert.finetune.text import Features, collator
from earlybert.finetune.training import Diverged, TrainerRun, make_trainer, predictions, train, updates
from earlybert.pretrain.checkpoint.pretrained import Pretrained
from earlybert.pretrain.ticket.ticket import Ticket


def open_task(task: Task, data: Path | None, pretrained: Pretrained, settings: TaskSettings) -> TaskData:
    """A task's examples; `data` holds a folder for each official task, by name, or is None for the hub."""
    require_length(pretrained, settings.max_length)
    folder = None if data is None or task.reads else data / task.name
    if folder and not folder.is_dir():
        raise UserError(
            f"--data is {data}, which has no folder {task.name}; it must hold the task's official files there"
        )
    opened = task.open(folder, pretrained.tokenizer, settings)
    require_segments(pretrained, opened.train(1)[0])
    return opened


@dataclass(frozen=True)
class Cell:
    """What to compute, and where its result goes."""

    task: str
    method: Method
    seed: int
    folder: Path

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    def run(self, pretrained: Pretrained, data: TaskData, rows: list[Features], tries: list[TaskSettings]) -> None:
        """Trains and scores it at the best of the learning rates; goes on where an interrupted call was."""
        if self.result.is_file():
            return
        began = time.monotonic()
        say(f"{self.task}, {self.method}, seed {self.seed}", enabled=rank() == 0)
        tried = self._tried(pretrained, data, tries) if len(tries) > 1 else []
        reached = [-math.inf if one["score"] is None else one["score"] for one in tried]
        settings = tries[reached.index(max(reached)) if reached else 0]
        full = task_config(pretrained, data.head, settings.dropout)
        ticket, searched = self._ticket(pretrained, full, data, rows, settings)
        full_weights = starting_weights(data.model_class, full, pretrained.weights, self.seed)
        network, weights = methods.cut(self.method, full.network, full_weights, ticket)
        model = data.model_class(full.with_network(network))
        model.load_state_dict(weights)
        epochs, learning_rate = methods.schedule(self.method, settings, full.network)
        run = TrainerRun("training", self.folder, epochs, learning_rate, self.seed)
        trainer = make_trainer(model, rows, collator(pretrained.tokenizer, rows), settings, run)
        trained = train(trainer)

        def predict(unlabelled: list[Features]) -> tuple[Any, ...]:
            return predictions(trainer, unlabelled)

        scores = data.evaluate(predict, settings.max_eval_examples)
        if settings.predict:
            data.submit(predict, self.folder / "predictions")
        if rank() == 0:
            save_trained(model, pretrained.tokenizer, self.folder / "export", settings.export)
            content = {
                "task": self.task,
                "method": self.method,
                "seed": self.seed,
                "scores": scores,
                "examples": len(rows),
                "epochs": epochs,
                "learning_rate": learning_rate,
                "tried": tried,
                "dense_steps": updates(len(rows), settings, settings.epochs),
                "search": dataclasses.asdict(searched) if searched else None,
                "training": dataclasses.asdict(trained),
                "ticket_sha256": ticket.sha256 if ticket else None,
            }
            write_json(self.result, content | methods.size(network, full.network, settings.max_length))
            # Its own, and those of a try that diverged.
            for checkpoints in list(self.folder.rglob("checkpoints")):
                shutil.rmtree(checkpoints, ignore_errors=True)
            listed = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            say(f"  {listed}  ({clock(time.monotonic() - began)})")
        wait_for_everyone()

    def _tried(
        self, pretrained: Pretrained, data: TaskData, tries: list[TaskSettings]
    ) -> list[dict[str, float | None]]:
        """Each learning rate, and the main score on a held-out tenth of the training set after training on the rest.

        All of the method is repeated for it, a search too; each try is a cell of its own. A rate that diverges
        has None.
        """
        tenth = data.held_out(tries[0].max_train_examples)
        rows, tried = tenth.train(None), []
        for number, settings in enumerate(tries, start=1):
            cell = dataclasses.replace(self, folder=self.folder / "tries" / str(number))
            say(f"learning rate {number} of {len(tries)}, on nine tenths of the training set", enabled=rank() == 0)
            only_scores = dataclasses.replace(settings, predict=False, export=[], max_eval_examples=None)
            try:
                cell.run(pretrained, tenth, rows, [only_scores])
            except Diverged as diverged:
                say(f"  {diverged}", enabled=rank() == 0)
                score = None
            else:
                score = read_json(cell.result)["scores"][TASKS[self.task].main_score]
            _, learning_rate = methods.schedule(self.method, settings, pretrained.config)
            tried.append({"learning_rate": learning_rate, "score": score})
        return tried

    def _ticket(
        self,
        pretrained: Pretrained,
        config: TrainedConfig,
        data: TaskData,
        rows: list[Features],
        settings: TaskSettings,
    ) -> tuple[Ticket | None, Cost | None]:
        """The ticket that this method trains, and what the search for it cost; both are on disk afterwards."""
        path, cost_path = self.folder / "ticket.json", self.folder / "search" / "cost.json"
        if path.is_file():
            return Ticket.load(path), Cost(**read_json(cost_path)) if cost_path.is_file() else None
        ticket, cost = methods.given_ticket(self.method, settings, config.network, self.seed), None
        if ticket is None and self.method == "earlybert":
            ticket, cost = methods.search(pretrained, config, data.model_class, rows, settings, self.folder, self.seed)
        if rank() == 0 and ticket:
            if cost:
                write_json(cost_path, dataclasses.asdict(cost))
            ticket.save(path)
        return ticket, cost
