"""What came out of a run: report.json, and the short table that ends it."""

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from earlybert.data_prep.corpus import Corpus
from earlybert.pretrain.accounting import time_saved
from earlybert.pretrain.config import Recipe, load_recipe
from earlybert.pretrain.corpora import corpus_directory
from earlybert.pretrain.files import read_json, write_json
from earlybert.pretrain.ticket import Ticket

# The search trains the full network on phase 1's batches: the two are compared step for step.
DENSE_AND_NARROW = {"dense": "search", "narrow": "phase1"}


def read_metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of one kind: train, validation or mask_distance."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Computes report.json from what the run directory holds, writes it and returns it."""
    recipe = load_recipe(run_dir / "config.yaml", [])
    plan = read_json(run_dir / "plan.json")
    train, validation = read_metrics(run_dir, "train"), read_metrics(run_dir, "validation")
    statistics_of_text = Corpus.open(corpus_directory(recipe)).manifest
    summary: dict[str, Any] = {
        "run_dir": str(run_dir),
        "plan": plan["plan"],
        "steps": {stage["name"]: taken_steps(validation, stage["name"]) for stage in plan["stages"]},
        "validation": {
            key: validation[-1][key]
            for key in ("stage", "step", "masked_loss", "masked_accuracy", "next_sentence_accuracy")
        },
        "unigram_cross_entropy": statistics_of_text["unigram_cross_entropy"],
        "dense": {
            "parameters": plan["dense_parameters"],
            "heads": [recipe.model.num_heads] * recipe.model.num_layers,
            "neurons": [recipe.model.intermediate_size] * recipe.model.num_layers,
        },
        "median_step_seconds": {stage["name"]: median_seconds(train, stage["name"]) for stage in plan["stages"]},
    }
    if (run_dir / "ticket.json").is_file():
        ticket = Ticket.load(run_dir / "ticket.json")
        narrow = [stage for stage in plan["stages"] if stage["narrow"]]
        summary["narrow"] = {
            "parameters": narrow[0]["parameters"] if narrow else None,
            "heads": [len(kept) for kept in ticket.heads],
            "neurons": [len(kept) for kept in ticket.neurons],
            "ticket_sha256": ticket.sha256,
        }
    by_name = {stage["name"]: stage for stage in plan["stages"]}
    if {"search", "phase1"} <= by_name.keys():
        summary |= _savings(recipe, by_name, summary)
    write_json(run_dir / "report.json", summary)
    return summary


def taken_steps(validation: list[dict[str, Any]], stage: str) -> int:
    """Updates really made in a stage: a search may stop before its limit."""
    return max((line["step"] for line in validation if line["stage"] == stage), default=0)


def median_seconds(train: list[dict[str, Any]], stage: str) -> float | None:
    """Median seconds of a logged step, waiting for data left out; None before the first."""
    seconds = [line["seconds"] for line in train if line["stage"] == stage]
    return statistics.median(seconds) if seconds else None


def _savings(recipe: Recipe, stages: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Measured step-time ratio of phase 1, and the time saved by the paper's formula.

    Work is counted in steps of dense phase 1; a dense step of phase 2 weighs what its operations say.
    """
    seconds = summary["median_step_seconds"]
    ratio = seconds["phase1"] / seconds["search"]
    weight = {"phase1": 1.0}
    if "phase2" in stages:
        weight["phase2"] = stages["phase2"]["flops_per_step"] / stages["phase1"]["flops_per_step"]
    base = sum(weight[name] * recipe.phase(name).steps for name in weight)
    train = sum(weight[name] * stages[name]["steps"] for name in weight)
    return {
        "step_time_ratio": ratio,
        "flops_per_step": {name: stages[stage]["flops_per_step"] for name, stage in DENSE_AND_NARROW.items()},
        "time_saved": time_saved(summary["steps"]["search"], train, base, ratio),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The table that ends a run."""
    table = Table(title="EarlyBERT run", show_header=True, title_justify="left")
    for column in ("", "dense", "narrow"):
        table.add_column(column, justify="left" if not column else "right")
    dense, narrow = summary["dense"], summary.get("narrow")

    def row(name: str, dense_value: str, narrow_value: str = "") -> None:
        table.add_row(name, dense_value, narrow_value if narrow else "-")

    row("parameters", f"{dense['parameters']:,}", f"{narrow['parameters'] or 0:,}" if narrow else "")
    for kind in ("heads", "neurons"):
        row(f"{kind} per layer", " ".join(map(str, dense[kind])), " ".join(map(str, narrow[kind])) if narrow else "")
    if "step_time_ratio" in summary:
        flops = summary["flops_per_step"]
        row("FLOPs per step", f"{flops['dense']:.3g}", f"{flops['narrow']:.3g}")
        row("FLOPs, relative", "1", f"{flops['narrow'] / flops['dense']:.3f}")
        row("step time (search, phase 1)", "1", f"{summary['step_time_ratio']:.3f}")
    console = Console()
    console.print(table)
    validation = summary["validation"]
    print("steps                  " + ", ".join(f"{name} {steps}" for name, steps in summary["steps"].items()))
    print(
        f"validation             masked-token loss {validation['masked_loss']:.3f} nats "
        f"(unigram cross-entropy {summary['unigram_cross_entropy']:.3f}), accuracy {validation['masked_accuracy']:.3f}"
    )
    if "time_saved" in summary:
        print(f"time saved             {summary['time_saved']:.1%} against dense training, the search included")
    print(f"run directory          {summary['run_dir']}")
    print(f"curves                 tensorboard --logdir {summary['run_dir']}/tensorboard")
