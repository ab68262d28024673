"""What came out of a run, as numbers; and the short table that ends it."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.network.work import time_saved
from earlybert.pretrain.plan.corpora import corpus_directory
from earlybert.pretrain.plan.recipe import BORDERS, Recipe, load_recipe, run_config_path
from earlybert.pretrain.plan.stages import read_plan
from earlybert.pretrain.report.timeline import (
    TIME_PARTS,
    Lines,
    accelerator_hours,
    clock,
    interruptions,
    of_kind,
    read_lines,
    sessions,
)
from earlybert.pretrain.ticket.ticket import Ticket, stack_ticket


def summarise(run_dir: Path) -> dict[str, Any]:
    """Content of report.json, from what the run directory holds so far; raises UserError where that is no run."""
    recipe = load_recipe(run_config_path(run_dir), [])
    plan, lines = read_plan(run_dir), read_lines(run_dir)
    stages = [stage["name"] for stage in plan["stages"]]
    train, validation = of_kind(lines, "train"), of_kind(lines, "validation")
    found = sessions(lines)
    summary: dict[str, Any] = {
        "run_dir": str(run_dir),
        "finished": finished(run_dir, len(stages)),
        "plan": plan["plan"],
        "layers": {stage["name"]: stage["layers"] for stage in plan["stages"]},
        "steps": {name: taken_steps([*train, *validation], name) for name in stages},
        "validation": _scores(validation[-1]) if validation else None,
        "stage_validation": {line["stage"]: _scores(line) for line in validation},
        "unigram_cross_entropy": Corpus.open(corpus_directory(recipe)).manifest["unigram_cross_entropy"],
        "dense": {
            "parameters": plan["dense_parameters"],
            "heads": [recipe.model.num_heads] * recipe.model.num_layers,
            "neurons": [recipe.model.intermediate_size] * recipe.model.num_layers,
        },
        "flops": plan["flops"],
        "dense_flops": plan["dense_flops"],
        "median_step_seconds": {name: median_seconds(train, name) for name in stages},
        "devices": sorted({session.device for session in found}),
        "ranks": sorted({session.ranks for session in found}),
        "seconds": clock(lines)[-1],
        "accelerator_hours": accelerator_hours(found),
        "interruptions": interruptions(lines),
        "time_split": {name: split for name in stages if (split := time_split(of_kind(lines, "time"), name))},
    }
    if (run_dir / "ticket.json").is_file():
        ticket = Ticket.load(run_dir / "ticket.json")
        narrow = [stage for stage in plan["stages"] if stage["narrow"]]
        grown = stack_ticket(ticket, narrow[-1]["layers"], narrow[-1]["copy"]) if narrow else ticket
        summary["narrow"] = {
            "parameters": narrow[-1]["parameters"] if narrow else None,
            "heads": [len(kept) for kept in grown.heads],
            "neurons": [len(kept) for kept in grown.neurons],
            "ticket_sha256": ticket.sha256,
            "ticket_source": ticket.source.kind,
        }
    if (dense := dense_stage(recipe, plan)) is not None:
        by_name = {stage["name"]: stage for stage in plan["stages"]}
        first_phase = [name for name in by_name if name != "phase2"]
        if "phase1" in by_name and all(summary["median_step_seconds"][name] for name in first_phase):
            summary |= _savings(recipe, by_name, summary, dense)
    return summary


def dense_stage(recipe: Recipe, plan: dict[str, Any]) -> str | None:
    """A stage that trains the full network on phase 1's batches, which the others are compared with step for step.

    None where the plan has no such stage, or nothing but such stages.
    """
    full = [
        stage["name"]
        for stage in plan["stages"]
        if stage["name"] != "phase2" and not stage["narrow"] and stage["layers"] == recipe.model.num_layers
    ]
    return full[0] if full and set(BORDERS) & set(plan["plan"]) else None


def finished(run_dir: Path, stages: int) -> bool:
    """Whether the last stage is trained to its end; checkpoints of a run that is done may have been cleared away."""
    if (run_dir / "DONE").is_file():
        return True
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    state = Checkpoint(checkpoints[-1]).state if checkpoints else None
    return state is not None and state.finished and state.stage_index == stages - 1


def _scores(line: dict[str, Any]) -> dict[str, Any]:
    names = ("stage", "step", "masked_loss", "masked_accuracy", "next_sentence_accuracy")
    return {name: line[name] for name in names}


def taken_steps(lines: Lines, stage: str) -> int:
    """Updates really made in a stage: a search may stop before its limit."""
    return max((line["step"] for line in lines if line["stage"] == stage), default=0)


def median_seconds(train: Lines, stage: str) -> float | None:
    """Median seconds of a logged step, waiting for data left out; None before the first."""
    seconds = [line["seconds"] for line in train if line["stage"] == stage]
    return statistics.median(seconds) if seconds else None


def time_split(lines: Lines, stage: str) -> dict[str, float]:
    """Mean seconds of a step by part; empty before the first sampled step. The first one, warming up, is left out."""
    sampled: Sequence[dict[str, Any]] = [line for line in lines if line["stage"] == stage]
    sampled = sampled[1:] or sampled
    return {part: statistics.fmean(line[part] for line in sampled) for part in TIME_PARTS} if sampled else {}


def _savings(recipe: Recipe, stages: dict[str, Any], summary: dict[str, Any], dense: str) -> dict[str, Any]:
    """Measured step-time ratio of phase 1, and the time saved: by the paper's formula, and by the clock.

    Work is counted in steps of dense phase 1, by the median times of the stages before phase 1's last; a dense step of
    phase 2 weighs what its operations say. The clock has everything that this run did (checkpoints, validation,
    restarts), the dense run it is compared with only steps.
    """
    seconds = summary["median_step_seconds"]
    ratio = seconds["phase1"] / seconds[dense]
    weight = {"phase1": 1.0}
    if "phase2" in stages:
        weight["phase2"] = stages["phase2"]["flops_per_step"] / stages["phase1"]["flops_per_step"]
    base = sum(weight[name] * recipe.phase(name).steps for name in weight)
    train = sum(weight[name] * stages[name]["steps"] for name in weight)
    before = sum(summary["steps"][name] * seconds[name] / seconds[dense] for name in stages.keys() - weight.keys())
    dense_seconds = base * seconds[dense]
    return {
        "step_time_ratio": ratio,
        "dense_stage": dense,
        "flops_per_step": {"dense": stages[dense]["flops_per_step"], "narrow": stages["phase1"]["flops_per_step"]},
        "time_saved": time_saved(before, train, base, ratio),
        "dense_seconds_estimate": dense_seconds,
        "time_saved_by_the_clock": 1 - summary["seconds"] / dense_seconds if summary["finished"] else None,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The table that ends a run."""
    table = Table(title="EarlyBERT run", show_header=True, title_justify="left")
    for column in ("", "dense", "narrow"):
        table.add_column(column, justify="left" if not column else "right")
    dense, narrow = summary["dense"], summary.get("narrow")

    def row(name: str, dense_value: str, narrow_value: str = "") -> None:
        table.add_row(name, dense_value, narrow_value if narrow else "-")

    trained = narrow and narrow["parameters"]
    row("parameters", f"{dense['parameters']:,}", f"{trained:,}" if trained else "-")
    for kind in ("heads", "neurons"):
        row(f"{kind} per layer", " ".join(map(str, dense[kind])), " ".join(map(str, narrow[kind])) if narrow else "")
    if narrow and "step_time_ratio" in summary:
        flops = summary["flops_per_step"]
        row("FLOPs per step", f"{flops['dense']:.3g}", f"{flops['narrow']:.3g}")
        row("FLOPs, relative", "1", f"{flops['narrow'] / flops['dense']:.3f}")
        row(f"step time ({summary['dense_stage']}, phase 1)", "1", f"{summary['step_time_ratio']:.3f}")
    console = Console()
    console.print(table)
    print("steps                  " + ", ".join(f"{name} {steps}" for name, steps in summary["steps"].items()))
    if (validation := summary["validation"]) is not None:
        print(
            f"validation             masked-token loss {validation['masked_loss']:.3f} nats "
            f"(unigram cross-entropy {summary['unigram_cross_entropy']:.3f}), "
            f"accuracy {validation['masked_accuracy']:.3f}"
        )
    if "time_saved" in summary:
        print(f"time saved             {summary['time_saved']:.1%} against dense training, all stages included")
    print(f"run directory          {summary['run_dir']}")
    print(f"curves                 tensorboard --logdir {summary['run_dir']}/tensorboard")
