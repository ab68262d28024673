"""The paper's tables and figures, measured anew, with its numbers beside them.

    python benchmarks/paper_tables.py --table 2 --scale small --models BERT=bert-base-uncased --data DATA --out OUT
    python benchmarks/paper_tables.py --table 4 --scale full --models BERT=runs/dense EarlyBERT=runs/early --out OUT

`--models` gives the networks by the names that the rows ask for; rows without their network are left out and named.
Flags that this script does not know go to `earlybert finetune`. Every result is kept in OUT and shared between the
tables; the same command again computes what is missing, also from the middle of a training, so it may be killed at any
time. A figure is also drawn, as OUT/figure-N.png.

Scales: `smoke` takes 200 examples of each set and one seed, minutes on two cores with a small network; `small` 10,000
to train, 2,000 to score and three seeds, for one GPU; `full` everything, with the paper's seeds.
"""

import argparse
import contextlib
import io
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from paper.experiments import FIGURES, TABLES, Arm, Experiment
from paper.pictures import score_figure
from provenance import measured_on
from rich.console import Console
from rich.table import Table

from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json
from earlybert.core.progress import say
from earlybert.core.ranks import rank
from earlybert.finetune import command
from earlybert.finetune.methods import TICKET_METHODS
from earlybert.finetune.results import Result, main_scores, majority, read_results, savings, shown
from earlybert.finetune.training import asked_to_stop
from earlybert.pretrain.checkpoint.pretrained import pretrained_network
from earlybert.pretrain.ticket.figures import mask_distance_figure


@dataclass(frozen=True)
class Scale:
    """How much of the data, and how many seeds (None: the paper's)."""

    flags: tuple[str, ...]
    seeds: int | None


SCALES = {
    "smoke": Scale(("--max-train-examples", "200", "--max-eval-examples", "200"), 1),
    "small": Scale(("--max-train-examples", "10000", "--max-eval-examples", "2000"), 3),
    "full": Scale((), None),
}


@dataclass(frozen=True)
class Measurement:
    """One experiment at one scale: where its results are, and how to compute what is missing."""

    experiment: Experiment
    scale: str
    models: dict[str, str]
    data: str | None
    out: Path
    more: tuple[str, ...]

    @property
    def arms(self) -> list[Arm]:
        return [arm for arm in self.experiment.arms if arm.model in self.models]

    @property
    def seeds(self) -> list[str]:
        return [str(seed) for seed in range(1, 1 + (SCALES[self.scale].seeds or self.experiment.seeds))]

    def folder(self, arm: Arm) -> Path:
        """One for each network and setting; dense rows of the default setting are shared by all tables."""
        setting = ",".join(f"{name}={value}" for name, value in sorted(arm.settings.items())) or "default"
        return self.out / self.scale / arm.model.replace(" ", "-") / setting

    def compute(self) -> bool:
        """Computes what is missing; returns whether it is all there, and nobody has asked to stop before."""
        for arm in self.arms:
            arguments = ["--model", self.models[arm.model], "--out", str(self.folder(arm)), "--export", "[]"]
            arguments += ["--data", self.data] if self.data else []
            arguments += ["--task", *self.experiment.tasks, "--method", arm.method, "--seed", *self.seeds]
            arguments += [word for name, value in arm.settings.items() for word in (f"--{name}", str(value))]
            with contextlib.redirect_stdout(io.StringIO()):
                command.main([*arguments, *SCALES[self.scale].flags, *self.more])
            # It returns where it was stopped, too, and the next call would listen anew.
            if asked_to_stop():
                return False
        return True

    def results(self, arm: Arm) -> dict[str, list[Result]]:
        """By task."""
        found = read_results(self.folder(arm))
        wanted = set(map(int, self.seeds))
        return {
            task: [result for result in found[task, arm.method] if result["seed"] in wanted]
            for task in self.experiment.tasks
        }

    def dense(self, arm: Arm) -> dict[str, list[Result]]:
        """What its time is compared with: dense training of the same network, in this experiment."""
        base = next((other for other in self.arms if (other.model, other.method) == (arm.model, "dense")), None)
        return self.results(base) if base else {task: [] for task in self.experiment.tasks}


def means(results: dict[str, list[Result]]) -> list[float]:
    """Mean over the tasks, by seed."""
    return [
        statistics.mean(row) for row in zip(*(main_scores(task, found) for task, found in results.items()), strict=True)
    ]


def relative_change(results: dict[str, list[Result]], base: dict[str, list[Result]]) -> float | None:
    """Mean over the tasks of the change against the base, percent of the base; tasks whose base is 0 are left out.

    None where no other is left: CoLA's may be 0.
    """
    pairs = [
        (statistics.mean(main_scores(task, results[task])), statistics.mean(main_scores(task, base[task])))
        for task in base
    ]
    changes = [100 * (new - old) / old for new, old in pairs if old]
    return statistics.mean(changes) if changes else None


def beside(value: str, paper: float | str | None) -> str:
    return value if paper is None else f"{value} / {paper}"


def cells(measurement: Measurement, arm: Arm) -> dict[str, str]:
    """One row by column, measured / paper."""
    experiment, results = measurement.experiment, measurement.results(arm)
    row: dict[str, str] = {}
    for task, found in results.items():
        row[task] = beside(shown(main_scores(task, found)), arm.paper.get(task))
    if experiment.mean:
        row["mean"] = beside(shown(means(results)), arm.paper.get("mean"))
    if "change" in arm.paper:
        family = arm.model.rsplit(" ", 1)[0]
        base = next((other for other in measurement.arms if other.model == f"{family} 100"), None)
        if base and (change := relative_change(results, measurement.results(base))) is not None:
            row["change"] = beside(f"{change:+.2f}", arm.paper["change"])
    if experiment.saving and arm.method != "dense":
        dense = measurement.dense(arm)
        saved = [share for task in results if (share := savings(results[task], dense[task]))]
        if saved:
            row["saved"] = beside(
                f"{100 * statistics.mean(share.paper for share in saved):.1f}", arm.paper.get("saved")
            )
            row["by the clock"] = f"{100 * statistics.mean(share.clock for share in saved):.1f}"
    return row


def print_experiment(measurement: Measurement) -> dict[str, Any]:
    """Prints rows, remarks and differences in setting; returns the rows."""
    experiment = measurement.experiment
    rows = {arm.name: cells(measurement, arm) for arm in measurement.arms}
    guesses = {task: majority(task, found) for task, found in measurement.results(measurement.arms[0]).items()}
    rows["majority class"] = {task: f"{100 * guess:.2f}" for task, guess in guesses.items() if guess is not None}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table("measured / paper", title=experiment.title)
    for column in columns:
        table.add_column(f"{column}, %", justify="right")
    for name, row in rows.items():
        table.add_row(name, *(row.get(column, "") for column in columns))
    Console(width=max(100, 36 + 20 * len(columns))).print(table)
    for line in differences(measurement):
        print(line)
    return rows


def differences(measurement: Measurement) -> list[str]:
    """In what the setting is not the paper's."""
    experiment = measurement.experiment
    left_out = [arm.name for arm in experiment.arms if arm.model not in measurement.models]
    limits = " ".join(SCALES[measurement.scale].flags) or "all examples"
    lines = [f"scale {measurement.scale}: {limits}; {len(measurement.seeds)} seed(s), the paper {experiment.seeds}"]
    if tickets := [arm for arm in measurement.arms if arm.method in TICKET_METHODS]:
        multiple = read_json(measurement.folder(tickets[0]) / "config.json")["draw"]["width_multiple"]
        lines.append(
            f"neurons kept in multiples of {multiple}, the paper: any number; more choices: docs/finetuning.md"
        )
    for name in dict.fromkeys(arm.model for arm in measurement.arms):
        first = measurement.results(next(arm for arm in measurement.arms if arm.model == name))
        of_task = ", ".join(f"{task} {found[0]['examples']:,}" for task, found in first.items())
        # As it was given: what is left of it differs from row to row.
        network = pretrained_network(measurement.models[name], "--models")
        lines.append(
            f"{name}: {measurement.models[name]}, {network.num_hidden_layers} layers of {max(network.heads)} heads and "
            f"{max(network.neurons)} neurons at most; rows to train on: {of_task}"
        )
    if measurement.more:
        lines.append(f"other numbers than the paper's: {' '.join(measurement.more)}")
    if left_out:
        lines.append(f"not measured, no network was given: {', '.join(left_out)}")
    return [*lines, *([experiment.remarks] if experiment.remarks else [])]


def distances(measurement: Measurement) -> dict[str, Any]:
    """Recorded steps and the distances between their masks."""
    arm, task = measurement.arms[0], measurement.experiment.tasks[0]
    # Beside it lie those of other tables with this setting.
    return read_json(measurement.folder(arm) / task / arm.method / "seed-1" / "search" / "mask_distance.json")


def print_distances(measurement: Measurement) -> dict[str, Any]:
    """Mask distance of each recorded step to the one before it and to the last one."""
    content = distances(measurement)
    print(f"{measurement.experiment.title}\n{'step':>8}" + "".join(f"{kind:>24}" for kind in ("heads", "neurons")))
    print(f"{'':>8}" + f"{'to the one before, last':>24}" * 2)
    for index, step in enumerate(content["steps"]):
        pairs = [(content[kind][index][max(0, index - 1)], content[kind][index][-1]) for kind in ("heads", "neurons")]
        print(f"{step:>8}" + "".join(f"{before:>16.4f}{last:>8.4f}" for before, last in pairs))
    for line in differences(measurement):
        print(line)
    return content


def picture(measurement: Measurement) -> Figure:
    """What the paper's figure shows."""
    experiment = measurement.experiment
    if experiment.distances:
        content = distances(measurement)
        return mask_distance_figure(content.pop("steps"), content)
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for arm in sorted(measurement.arms, key=lambda arm: arm.x):
        lines.setdefault(arm.line, []).append((arm.x, means(measurement.results(arm))))
    title, _, _ = experiment.title.partition(" (")
    return score_figure(title, experiment.x_label, f"mean over {', '.join(experiment.tasks)}, %", lines)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", type=int, choices=sorted(TABLES))
    which.add_argument("--figure", type=int, choices=sorted(FIGURES))
    parser.add_argument("--scale", choices=sorted(SCALES), default="smoke")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL", help="run, export or BERT")
    parser.add_argument("--data", help="folder with GLUE's folders and SQuAD; without it, the hub")
    parser.add_argument("--tasks", nargs="+", help="only these columns")
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    return parser.parse_known_args()


def chosen(arguments: argparse.Namespace, more: list[str]) -> Measurement:
    """What the arguments ask for; raises UserError."""
    experiment = TABLES[arguments.table] if arguments.table else FIGURES[arguments.figure]
    if arguments.tasks:
        tasks = tuple(task for task in experiment.tasks if task in arguments.tasks)
        if len(tasks) != len(arguments.tasks):
            raise UserError(f"--tasks is {' '.join(arguments.tasks)}; it must be of {', '.join(experiment.tasks)}")
        experiment = Experiment(**(vars(experiment) | {"tasks": tasks}))
    models = dict(given.partition("=")[::2] for given in arguments.models)
    needed = dict.fromkeys(arm.model for arm in experiment.arms)
    unknown = [name for name in models if name not in needed]
    if unknown or not all(models.values()):
        raise UserError(
            f"--models is {' '.join(arguments.models)}; it must give one of {', '.join(needed)} as NAME=MODEL"
        )
    return Measurement(experiment, arguments.scale, models, arguments.data, arguments.out, tuple(more))


def show(measurement: Measurement, arguments: argparse.Namespace) -> None:
    """Prints the table; draws it if it is a figure, and writes it where it is asked for."""
    rows = (print_distances if measurement.experiment.distances else print_experiment)(measurement)
    if arguments.figure:
        path = arguments.out / f"figure-{arguments.figure}.png"
        picture(measurement).savefig(path, dpi=150)
        print(f"drawn in {path}")
    if arguments.json:
        content = {"measured_on": measured_on(), "settings": differences(measurement), "rows": rows}
        write_json(arguments.json, content)


def main() -> None:
    arguments, more = parse()
    try:
        measurement = chosen(arguments, more)
        if not measurement.compute():
            say("no table: asked to stop before all was computed", enabled=rank() == 0)
        elif rank() == 0:
            show(measurement, arguments)
    except (UserError, OSError) as error:
        print(f"paper_tables: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
