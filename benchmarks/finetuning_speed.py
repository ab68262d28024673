"""Speed of a fine-tuning update: Hugging Face's BERT under its Trainer, and ours, on the same examples.

    python benchmarks/finetuning_speed.py --model MODEL --data DATA --task MRPC --json benchmarks/results/NAME.json

Dense, and with one random ticket of the default rule; of that, theirs is a BERT whose linear layers were cut by hand.
Both have the same Trainer, AdamW, precision, dropout and examples in each update. Theirs runs as people run it, and
with what our command sets for its process (freed memory kept, oneDNN's products). All take turns in one process, after
their losses without dropout were compared. A number is the median over updates and rounds, the first update of each
training left out; a ratio is the median of the ratios of the same update.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from freed_memory import give_freed_memory_back
from provenance import measured_on
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from earlybert.core.devices import device_type, keep_freed_memory, set_matmul_precision, synchronize
from earlybert.core.files import write_json
from earlybert.finetune import methods
from earlybert.finetune.cell import open_task
from earlybert.finetune.config import Settings, TaskSettings
from earlybert.finetune.network import TrainedModel
from earlybert.finetune.pretrained import starting_weights, task_config
from earlybert.finetune.saved import hugging_face_model
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.text import Features, length
from earlybert.finetune.training import StopAfter, TrainerRun, make_trainer, order, run_arguments
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.ticket.ticket import Ticket

SIDES = ("theirs", "theirs, our settings", "ours")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SEED = 1
# Of the losses of one batch in fp32, relative.
LARGEST_DIFFERENCE = 1e-4


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as for earlybert finetune")
    parser.add_argument("--data", type=Path, required=True, help="folder with the task's folder")
    parser.add_argument("--task", choices=list(TASKS), default="MRPC")
    parser.add_argument("--batch-size", type=int, help="examples in an update; the task's default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--updates", type=int, default=5, help="of each training, the first left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: the process's time on all cores")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Watch(TrainerCallback):
    """Seconds of every update, from the end of the one before it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds = clock, list[float]()

    def now(self) -> float:
        synchronize(torch.device(device_type()))
        return self.clock()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = self.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = self.now()
        self.seconds.append(now - self.last)
        self.last = now


class SameBatches(Trainer):
    """Hugging Face's Trainer, given padded batches of the examples that ours takes."""

    def __init__(self, rows: list[Features], size: int, **others: Any) -> None:
        super().__init__(train_dataset=rows, **others)
        self.rows, self.size = rows, size

    def get_batch_samples(self, *_: Any) -> tuple[list[dict[str, Any]], None]:
        indices = order(self.args.seed, 0, len(self.rows))[self.state.global_step * self.size :][: self.size]
        rows: list[Any] = [self.rows[index] for index in indices]
        return [self._prepare_inputs(self.data_collator(rows))], None


def prepare_process(*, usual: bool) -> None:
    """As PyTorch finds it, or as our command does."""
    if usual:
        give_freed_memory_back()
    else:
        keep_freed_memory()
    set_matmul_precision("highest" if usual else "auto", torch.device(device_type()))


def keep(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """A linear layer of these rows or columns."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    kept = nn.Linear(weight.shape[1], weight.shape[0])
    kept.load_state_dict({"weight": weight, "bias": bias})
    return kept


def cut_by_hand(model: PreTrainedModel, ticket: Ticket) -> PreTrainedModel:
    """Hugging Face's BERT with the ticket's heads and neurons alone; its code goes by the widths that it finds."""
    size = ticket.model.head_size
    layers: Any = model.get_submodule("bert.encoder.layer")
    for layer, heads, neurons in zip(layers, ticket.heads, ticket.neurons, strict=True):
        rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])
        attention = layer.attention
        for name in ("query", "key", "value"):
            setattr(attention.self, name, keep(getattr(attention.self, name), rows=rows))
        attention.output.dense = keep(attention.output.dense, columns=rows)
        layer.intermediate.dense = keep(layer.intermediate.dense, rows=torch.tensor(neurons))
        layer.output.dense = keep(layer.output.dense, columns=torch.tensor(neurons))
    return model


class Bench(NamedTuple):
    """What every training of the comparison shares."""

    given: argparse.Namespace
    settings: TaskSettings
    rows: list[Features]
    collate: Any
    ours: Callable[[Ticket | None], TrainedModel]

    def theirs(self, ticket: Ticket | None) -> PreTrainedModel:
        dense = hugging_face_model(self.ours(None), "bert")
        return cut_by_hand(dense, ticket) if ticket else dense

    def seconds(self, side: str, ticket: Ticket | None) -> list[float]:
        """Of a few updates from the pre-trained weights on, without the first."""
        watch = Watch(CLOCKS[self.given.clock])
        with tempfile.TemporaryDirectory() as folder:
            run = TrainerRun("training", Path(folder), 3.0, 2e-5, SEED, stop_after=self.given.updates)
            prepare_process(usual=side == "theirs")
            if side == "ours":
                trainer: Trainer = make_trainer(self.ours(ticket), self.rows, self.collate, self.settings, run)
            else:
                trainer = SameBatches(
                    self.rows,
                    self.settings.batch_size,
                    model=self.theirs(ticket),
                    args=run_arguments(self.settings, run),
                    data_collator=self.collate,
                    callbacks=[StopAfter(self.given.updates)],
                )
                trainer.remove_callback(PrinterCallback)
            trainer.add_callback(watch)
            trainer.train()
        return watch.seconds[1:]

    def compare(self, ticket: Ticket | None) -> None:
        """Raises AssertionError where the two sides do not compute the same."""
        batch = self.collate(self.rows[:2])
        # Answers: over a row's own tokens here, over padding too there; so of one row at a time.
        batches = [self.collate([row]) for row in self.rows[:2]] if "start_positions" in batch else [batch]
        for inputs in batches:
            with torch.no_grad():
                ours, theirs = (float(make(ticket).eval()(**inputs).loss) for make in (self.ours, self.theirs))
            assert abs(ours - theirs) < LARGEST_DIFFERENCE * abs(theirs), (ours, theirs)


def prepare(given: argparse.Namespace) -> tuple[Bench, Ticket]:
    settings = Settings(precision=given.precision, batch_size=given.batch_size).for_task(TASKS[given.task].defaults)
    pretrained = open_pretrained(given.model)
    data = open_task(TASKS[given.task], given.data, pretrained, settings)
    config = task_config(pretrained, data.head, settings.dropout)
    ticket = methods.given_ticket("random", settings, config.network, SEED)
    assert ticket is not None

    def ours(ticket: Ticket | None) -> TrainedModel:
        weights = starting_weights(data.model_class, config, pretrained.weights, SEED)
        network, weights = methods.cut("dense", config.network, weights, ticket)
        model = data.model_class(config.with_network(network))
        model.load_state_dict(weights)
        return model

    needed = given.updates * settings.batch_size
    return Bench(given, settings, data.train(needed), DataCollatorWithPadding(pretrained.tokenizer), ours), ticket


def main() -> None:
    given = options()
    transformers.logging.set_verbosity_error()
    bench, ticket = prepare(given)
    arms = {"dense": None, "ticket": ticket}
    for arm in arms.values():
        bench.compare(arm)
    found: dict[str, dict[str, list[float]]] = {name: {side: [] for side in SIDES} for name in arms}
    for _ in range(given.rounds):
        for name, sides in found.items():
            for side, seconds in sides.items():
                seconds += bench.seconds(side, arms[name])
    lengths = [length(row) for row in bench.rows]
    rows = {}
    for name, sides in found.items():
        medians = {side: statistics.median(seconds) for side, seconds in sides.items()}
        ratios = {
            side: statistics.median(a / b for a, b in zip(sides[side], sides["ours"], strict=True))
            for side in SIDES[:2]
        }
        rows[name] = {"median_seconds": medians, "ratio_to_ours": ratios, "seconds": sides}
        shown = ", ".join(f"{side} {1e3 * seconds:.0f} ms" for side, seconds in medians.items())
        print(f"{given.task} {name}: {shown}; over ours {', '.join(f'{ratio:.2f}' for ratio in ratios.values())}")
    if given.json:
        setting = {name: getattr(given, name) for name in ("task", "clock", "updates", "rounds")} | {
            "precision": given.precision,
            "batch_size": bench.settings.batch_size,
            "threads": torch.get_num_threads(),
            "mean_length": statistics.mean(lengths),
            "longest": max(lengths),
        }
        versions = measured_on("transformers", "accelerate")
        write_json(given.json, {"measured_on": versions, "setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
