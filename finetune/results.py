"""What the cells of an output folder say together: means and spreads over seeds, and the time saved."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from earlybert.core.files import read_json
from earlybert.finetune.config import METHODS
from earlybert.finetune.tasks.registry import TASKS
from earlybert.pretrain.network.work import time_saved

Result = dict[str, Any]
Grouped = dict[tuple[str, str], list[Result]]


def read_results(out: Path) -> Grouped:
    """Results by task and method, in the order of seeds."""
    grouped: Grouped = defaultdict(list)
    for path in out.glob("*/*/seed-*/result.json"):
        result = read_json(path)
        grouped[result["task"], result["method"]].append(result)
    for results in grouped.values():
        results.sort(key=lambda result: result["seed"])
    return grouped


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and the sample's standard deviation where there are two values or more."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def main_scores(task: str, results: list[Result]) -> list[float]:
    """The task's main score in percent, of each result."""
    factor = 1 if TASKS[task].in_percent else 100
    return [factor * result["scores"][TASKS[task].main_score] for result in results]


@dataclass(frozen=True)
class MeanCost:
    """Mean updates of searches or trainings, seconds of each by both definitions of `Cost`, and of all by the clock."""

    steps: float
    compute: float
    update: float
    clock: float

    @staticmethod
    def of(results: list[Result], part: str) -> "MeanCost":
        costs = [result[part] for result in results if result[part]]
        total = sum(cost["steps"] for cost in costs)
        if not total:
            return MeanCost(0.0, 0.0, 0.0, 0.0)
        return MeanCost(
            steps=total / len(costs),
            compute=sum(cost["compute"] * cost["steps"] for cost in costs) / total,
            update=sum(cost["update"] * cost["steps"] for cost in costs) / total,
            clock=sum(cost["clock"] for cost in costs) / len(costs),
        )


@dataclass(frozen=True)
class Savings:
    """Shares of dense training's time that a method saved.

    `paper`: by the formula recovered from the paper's figures, from the ratio of mean step times without loading and
    optimizer; `update`: the same with clipping and optimizer; `clock`: everything. `ratio` is that of `paper`.
    """

    ratio: float
    paper: float
    update: float
    clock: float


def savings(results: list[Result], dense: list[Result]) -> Savings | None:
    """Against dense runs of the same task; where there are none the search's steps, on the full network, stand in."""
    search, training = MeanCost.of(results, "search"), MeanCost.of(results, "training")
    base = MeanCost.of(dense, "training")
    if not base.steps:
        if not search.steps:
            return None
        steps = statistics.mean(result["dense_steps"] for result in results)
        base = MeanCost(steps, search.compute, search.update, search.clock / search.steps * steps)
    ratio = training.compute / base.compute
    return Savings(
        ratio=ratio,
        paper=time_saved(search.steps, training.steps, base.steps, ratio),
        update=time_saved(search.steps, training.steps, base.steps, training.update / base.update),
        clock=1 - (search.clock + training.clock) / base.clock,
    )


def majority(task: str, results: list[Result]) -> float | None:
    """The main score of always guessing the most frequent class, a fraction; None where there are no classes."""
    # One class has no correlation with anything.
    return 0.0 if TASKS[task].main_score == "matthews" else results[0]["scores"].get("majority")


def shown(values: list[float]) -> str:
    mean, deviation = spread(values)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def print_tables(out: Path) -> None:
    """Scores of every method on every task with their spread over seeds, in percent; then what each method cost."""
    grouped = read_results(out)
    tasks = [task for task in TASKS if any(task == there for there, _ in grouped)]
    methods = [method for method in METHODS if any(method == there for _, there in grouped)]
    console = Console(width=max(80, 16 + 18 * len(tasks)))
    console.print(_score_table(grouped, tasks, methods))
    costs = Table(title="cost against dense training")
    for column in (
        "task",
        "method",
        "FLOPs per step",
        "step time",
        "saved, paper's protocol",
        "with optimizer",
        "clock",
    ):
        costs.add_column(column, justify="left" if column in ("task", "method") else "right")
    for task in tasks:
        for method in methods:
            results = grouped.get((task, method))
            saved = savings(results, grouped.get((task, "dense"), [])) if results and method != "dense" else None
            if results and saved:
                shares = (f"{100 * share:.1f}%" for share in (saved.paper, saved.update, saved.clock))
                costs.add_row(task, method, f"{results[0]['relative_flops']:.3f}", f"{saved.ratio:.3f}", *shares)
    if costs.row_count:
        console.print(costs)
    rates = Table("task", "method", "learning rate by seed", title="best on a held-out tenth of the training set")
    for key, results in grouped.items():
        if any(result.get("tried") for result in results):
            rates.add_row(*key, ", ".join(f"{result['learning_rate']:g}" for result in results))
    if rates.row_count:
        console.print(rates)


def _score_table(grouped: Grouped, tasks: Sequence[str], methods: Sequence[str]) -> Table:
    table = Table("", title="mean ± standard deviation over seeds, %")
    guesses = []
    for task in tasks:
        table.add_column(f"{task}\n{TASKS[task].main_score}", justify="right")
        guesses.append(majority(task, next(results for (there, _), results in grouped.items() if there == task)))
    for method in methods:
        cells = []
        for task in tasks:
            values = main_scores(task, grouped.get((task, method), []))
            cells.append(shown(values) if values else "")
        table.add_row(method, *cells)
    table.add_row("majority class", *("" if guess is None else f"{100 * guess:.2f}" for guess in guesses))
    return table
