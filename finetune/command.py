"""`earlybert finetune`: every given method on every given task with every given seed, into one folder."""

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import transformers
from accelerate import PartialState

from earlybert.core import distributed
from earlybert.core.arguments import parse
from earlybert.core.devices import device_type, keep_freed_memory, set_matmul_precision
from earlybert.core.errors import UserError
from earlybert.core.files import file_hash, read_json, write_json
from earlybert.core.locks import sole_use
from earlybert.core.paths import require_place, what_is_there
from earlybert.core.progress import say
from earlybert.core.ranks import check_environment, rank, warn_once
from earlybert.finetune import methods
from earlybert.finetune.cell import Cell, open_task
from earlybert.finetune.config import LEARNING_RATES, METHODS, Settings
from earlybert.finetune.results import print_tables
from earlybert.finetune.tasks.registry import TASKS, require_known, require_read
from earlybert.finetune.training import STOP, Stopped, layout
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.train.stopping import ignore_signals

# What to compute; all other options say how.
WHAT = ("model", "data", "out", "task", "method", "seed")


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="earlybert finetune",
        description="Fine-tune and score a pre-trained network on GLUE, SQuAD v1.1 and files of your own, one result "
        "for every task, method and seed. Called again with the same folder it does what is missing and prints the "
        "tables.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="run directory, exported folder, or Hugging Face BERT")
    parser.add_argument("--data", help="folder with GLUE's folders and SQuAD, by name; without it, the hub")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--task", nargs="+", required=True, help=f"of {', '.join(TASKS)}")
    parser.add_argument("--method", nargs="+", default=["earlybert"], help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seed", nargs="+", type=int, default=[42], help="one result each")
    parser.add_class_arguments(Settings, nested_key=None, skip=set(LEARNING_RATES))
    for name, help in LEARNING_RATES.items():
        parser.add_argument(f"--{name}", nargs="+", type=float, help=help)
    return parser


def parse_arguments(argv: list[str]) -> tuple[dict[str, Any], Settings]:
    """The six arguments that say what to compute, and the settings that say how; raises UserError."""
    parsed = parse(_parser(), argv)
    for name in LEARNING_RATES:
        if parsed[name] and len(parsed[name]) == 1:
            (parsed[name],) = parsed[name]
    settings = Settings(**{field.name: parsed[field.name] for field in dataclasses.fields(Settings)})
    settings.check()
    what = {name: parsed[name] for name in WHAT}
    require_known("--task", what["task"], tuple(TASKS))
    require_known("--method", what["method"], METHODS)
    require_read(what["task"], settings)
    for seed in what["seed"]:
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed is {seed}; it must be at least 0 and below {2**32:,}")
    return what, settings


def require_same(out: Path, given: dict[str, Any]) -> None:
    """One folder is for one model, data and settings: otherwise its table would compare what cannot be compared."""
    path = out / "config.json"
    own = {name: given[name] for name in ("train", "validation", "ticket") if given[name]}
    hashes = {name: file_hash(Path(file)) for name, file in own.items()}
    if path.is_file():
        before = read_json(path)
        if not isinstance(before, dict):
            raise UserError(f"{path}: does not hold settings of earlybert finetune; choose another --out")
        for name, value in given.items():
            if before.get(name) != value:
                raise UserError(
                    f"{name} is {json.dumps(value)}, but {path} has {json.dumps(before.get(name))}; "
                    "keep that value or choose another --out"
                )
        for name, value in hashes.items():
            # Folders of older versions do not say.
            if before.get("sha256", hashes).get(name) != value:
                raise UserError(
                    f"--{name} is {own[name]}, which has changed since {out} was begun; choose another --out"
                )
    elif rank() == 0:
        write_json(path, given | {"sha256": hashes})


def main(argv: list[str]) -> None:
    """Computes the cells that are missing and prints the tables; raises UserError."""
    what, settings = parse_arguments(argv)
    check_environment()
    warn_once()
    PartialState(cpu=device_type() == "cpu")  # where there are several ranks, they find each other
    keep_freed_memory()
    set_matmul_precision("auto", torch.device(device_type()))
    transformers.logging.set_verbosity_error()
    out, data = Path(what["out"]), None if what["data"] is None else Path(what["data"])
    if data is not None and not data.is_dir():
        raise UserError(f"--data is {data}, which is not a folder with GLUE's folders and SQuAD; {what_is_there(data)}")
    require_place(out, "--out")
    tries_of = {task: settings.tries(TASKS[task].defaults) for task in what["task"]}
    pretrained = open_pretrained(what["model"])
    for first, *_ in tries_of.values():
        layout(first)
        for method in what["method"]:
            methods.require_usable(method, first, pretrained)
    opened = {task: open_task(TASKS[task], data, pretrained, tries[0]) for task, tries in tries_of.items()}
    for task in (task for task, tries in tries_of.items() if len(tries) > 1):
        opened[task].held_out(settings.max_train_examples)  # raises where there is too little
    # Whatever is wrong with the data has been found by now; nothing is written before.
    with ExitStack() as held:
        distributed.on_rank_0(lambda: held.enter_context(sole_use(out, "--out")))
        require_same(out, {"model": what["model"], "data": what["data"]} | dataclasses.asdict(settings))
        STOP.listen()
        try:
            for task, task_data in opened.items():
                rows = task_data.train(settings.max_train_examples)
                for seed in what["seed"]:
                    for method in what["method"]:
                        cell = Cell(task, method, seed, out / task / method / f"seed-{seed}")
                        cell.run(pretrained, task_data, rows, tries_of[task])
        except Stopped as stopped:
            say(f"stopped as asked at {stopped}; run the same command again to resume", enabled=rank() == 0)
            return
        finally:
            # How the process ends is decided.
            ignore_signals()
        if rank() == 0:
            print_tables(out)
