"""One cell of a table: one task, one method, one seed. A cell with a result is done and never computed again."""

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import wait_for_everyone
from transformers import DataCollatorWithPadding

from earlybert.finetune import methods
from earlybert.finetune.clock import Cost
from earlybert.finetune.config import Method, Recipe
from earlybert.finetune.glue import GlueData, Predict
from earlybert.finetune.model import TaskModel
from earlybert.finetune.pretrained import Pretrained, starting_weights, task_config
from earlybert.finetune.saved import save_trained
from earlybert.finetune.squad import SquadData
from earlybert.finetune.tasks import SQUAD
from earlybert.finetune.text import Features
from earlybert.finetune.training import Stage, make_trainer, predictions, train, updates
from earlybert.pretrain.distributed import rank
from earlybert.pretrain.errors import UserError
from earlybert.pretrain.files import read_json, write_json
from earlybert.pretrain.model import EarlyBertConfig
from earlybert.pretrain.surgery import narrow_config, narrow_weights
from earlybert.pretrain.telemetry import clock, say
from earlybert.pretrain.ticket import Ticket


class TaskData(Protocol):
    """What GLUE's tasks and SQuAD have in common."""

    @property
    def model_class(self) -> TaskModel: ...
    @property
    def head(self) -> dict[str, object]: ...
    def train(self, count: int | None) -> list[Features]: ...
    def evaluate(self, predict: Predict, count: int | None) -> dict[str, float]: ...
    def submit(self, predict: Predict, folder: Path) -> None: ...


def open_task(task: str, data: Path | None, pretrained: Pretrained, recipe: Recipe) -> TaskData:
    """A task's examples; `data` holds GLUE's folders and `SQuAD`, each by name, or is None for the hub."""
    pretrained.require_length(recipe.max_length)
    folder = None if data is None else data / task
    if folder and not folder.is_dir():
        raise UserError(f"--data is {data}, which has no folder {task}; it must hold the task's official files there")
    if task == SQUAD:
        return SquadData(folder, pretrained.tokenizer, recipe.windows)
    return GlueData(task, folder, pretrained.tokenizer, recipe.max_length)


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

    def run(self, pretrained: Pretrained, data: TaskData, rows: list[Features], recipe: Recipe) -> dict[str, Any]:
        """Trains and scores it; goes on where an interrupted call was."""
        if self.result.is_file():
            return read_json(self.result)
        began = time.monotonic()
        say(f"{self.task}, {self.method}, seed {self.seed}", enabled=rank() == 0)
        config = task_config(pretrained, data.head, recipe.dropout)
        ticket, searched = self._ticket(pretrained, config, data, rows, recipe)
        weights = starting_weights(data.model_class, config, pretrained.weights, self.seed)
        full_config = config
        if ticket:
            config, weights = narrow_config(config, ticket), narrow_weights(config, weights, ticket)
        elif self.method == "layerdrop":
            config, weights = methods.drop_layers(config, weights, methods.layers_to_drop(config.num_hidden_layers))
        model = data.model_class(config)
        model.load_state_dict(weights)
        epochs, learning_rate = methods.schedule(self.method, recipe, full_config)
        stage = Stage(
            "training",
            self.folder / "training" / "final",
            self.folder / "tensorboard" / "training",
            epochs,
            learning_rate,
            self.seed,
        )
        trainer = make_trainer(model, rows, DataCollatorWithPadding(pretrained.tokenizer), recipe, stage)
        trained = train(trainer)

        def predict(unlabelled: list[Features]) -> tuple[Any, ...]:
            return predictions(trainer, unlabelled)

        scores = data.evaluate(predict, recipe.max_eval_examples)
        if recipe.predict:
            data.submit(predict, self.folder / "predictions")
        result = {
            "task": self.task,
            "method": self.method,
            "seed": self.seed,
            "scores": scores,
            "examples": len(rows),
            "epochs": epochs,
            "learning_rate": learning_rate,
            "dense_steps": updates(len(rows), recipe, recipe.epochs),
            "search": dataclasses.asdict(searched) if searched else None,
            "training": dataclasses.asdict(trained),
            "layers": config.num_hidden_layers,
            "heads": config.heads,
            "neurons": config.neurons,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "relative_flops": methods.step_cost(config, recipe.max_length)
            / methods.step_cost(full_config, recipe.max_length),
            "ticket_sha256": ticket.sha256 if ticket else None,
        }
        if rank() == 0:
            save_trained(model, pretrained.tokenizer, self.folder / "export", recipe.export)
            write_json(self.result, result)
            shutil.rmtree(self.folder / "training", ignore_errors=True)
            listed = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            say(f"  {listed}  ({clock(time.monotonic() - began)})")
        wait_for_everyone()
        return result

    def _ticket(
        self, pretrained: Pretrained, config: EarlyBertConfig, data: TaskData, rows: list[Features], recipe: Recipe
    ) -> tuple[Ticket | None, Cost | None]:
        """The ticket that this method trains, and what the search for it cost; both are on disk afterwards."""
        path, cost_path = self.folder / "ticket.json", self.folder / "search" / "cost.json"
        if path.is_file():
            return Ticket.load(path), Cost(**read_json(cost_path)) if cost_path.is_file() else None
        ticket, cost = methods.given_ticket(self.method, recipe, config, self.seed), None
        if ticket is None and self.method == "earlybert":
            ticket, cost = methods.search(pretrained, config, data.model_class, rows, recipe, self.folder, self.seed)
        if rank() == 0 and ticket:
            if cost:
                write_json(cost_path, dataclasses.asdict(cost))
            ticket.save(path)
        return ticket, cost
