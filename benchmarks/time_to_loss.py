"""How soon is the same model there? Dense training, tickets, growth and both together, raced on the same text.

    python benchmarks/time_to_loss.py --budget 60 --seeds 0
    python benchmarks/time_to_loss.py --budget 60 --seeds 0 1 2 --arms dense EarlyBERT "random ticket"

Needs EARLYBERT_DATA, or --data CORPUS. A machine with a GPU races BERT-Base, unless the environment has
DS_ACCELERATOR=cpu. Every arm is a run of its own; a call that its budget of minutes ends, or that is interrupted, is
taken up by the next one. Then the steps of all shapes are timed in turn, and a table, a JSON file and a picture say
what came out: validation loss and accuracy against steps, FLOPs and seconds, and after which share of the dense run's
seconds its final loss was met, the search and everything else included. `--FIELD VALUE` changes the recipe of all.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from provenance import measured_on
from race.arms import arms, command, experiments, make_corpus, run_dir, write_recipe
from race.outcome import curve, figure, race, rows
from race.step_times import measure, stage_shapes
from rich.console import Console
from rich.table import Table

from earlybert.core.devices import device_type
from earlybert.core.files import read_json, write_json

# Not worth starting a run for.
LEAST_SECONDS = 20


def options() -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60.0, help="minutes to train in this call; timing comes after")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", help="names of arms; default: all, without experiments")
    parser.add_argument("--experiments", action="store_true", help="on CPUs: race/experiments.yaml instead of the arms")
    parser.add_argument("--data", type=Path, help="a prepared corpus of the recipe's length, instead of EARLYBERT_DATA")
    parser.add_argument("--work-dir", type=Path, help="default: runs/time_to_loss-DEVICE")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing the shapes in turn")
    parser.add_argument("--out", type=Path, help="JSON of the results; default: in the work folder")
    found, rest = parser.parse_known_args()
    if len(rest) % 2 or not all(name.startswith("--") for name in rest[::2]):
        parser.error(f"unknown arguments {' '.join(rest)}; the recipe's fields are --FIELD VALUE")
    found.device = device_type()
    if found.experiments and found.device != "cpu":
        parser.error("--experiments are for the network of a CPU; set DS_ACCELERATOR=cpu")
    everybody = experiments() if found.experiments else arms(found.device)
    if unknown := set(found.arms or []) - everybody.keys():
        parser.error(f"--arms names {sorted(unknown)}; there are {', '.join(everybody)}")
    found.arms = {name: arm for name, arm in everybody.items() if name in (found.arms or everybody)}
    found.work_dir = found.work_dir or Path("runs") / f"time_to_loss-{found.device}"
    changes = {
        name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(rest[::2], rest[1::2], strict=True)
    }
    return found, changes


def train(line: list[str], seconds: float) -> None:
    """Runs an arm, or what is left of it; after these seconds it is asked to stop, and goes on in the next call."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also where this call is itself asked to stop: two runs must never share a folder.
        process.terminate()
        process.wait()
    # Asked before it could listen, it has simply ended.
    if process.returncode not in (0, -signal.SIGTERM):
        sys.exit(f"time_to_loss: status {process.returncode} of {' '.join(line)}")


def main() -> None:
    given, changes = options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("time_to_loss: asked to stop; call it again to go on"))
    work_dir: Path = given.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * given.budget
    corpus = given.data.resolve() if given.data else make_corpus(given.device, work_dir)
    recipe = write_recipe(given.device, work_dir, changes)
    todo = [
        (name, seed, out)
        for seed in given.seeds
        for name in given.arms
        if not ((out := run_dir(work_dir, name, seed)) / "DONE").is_file()
    ]
    for number, (name, seed, out) in enumerate(todo, start=1):
        if (left := deadline - time.monotonic()) < LEAST_SECONDS:
            print(f"the budget of {given.budget:g} minutes is spent; {len(todo) - number + 1} arms are left to do")
            break
        print(f"arm {number} of {len(todo)}: {name}, seed {seed}; {left / 60:.0f} minutes left", flush=True)
        train(command(given.arms[name], recipe, corpus, out, seed), left)
    report(given, work_dir)


def report(given: argparse.Namespace, work_dir: Path) -> None:
    """Table, JSON and picture of the arms that are done, those of earlier calls too; of experiments beside dense."""
    done: dict[str, dict[int, Path]] = {}
    for name in {"dense": None, **(given.arms if given.experiments else arms(given.device))}:
        pattern = run_dir(work_dir, name, 0).name.removesuffix("0") + "*"
        found = {int(path.name.rpartition("seed")[2]): path for path in work_dir.glob(pattern) if path.is_dir()}
        done[name] = {seed: path for seed, path in found.items() if (path / "DONE").is_file()}
    if not done["dense"]:
        sys.exit("time_to_loss: no dense run is done yet, which all are measured against; let that arm run")
    runs = [path for by_seed in done.values() for path in by_seed.values()]
    seconds = measured_seconds(runs, work_dir / "step_seconds.json", given.rounds)
    curves = {
        name: {
            seed: curve(path, {stage: seconds[timed.key] for stage, timed in stage_shapes(path).items()})
            for seed, path in by_seed.items()
        }
        for name, by_seed in done.items()
    }
    table = race(curves)
    recipe = yaml.safe_load((work_dir / "recipe.yaml").read_text())
    results = measured_on("deepspeed") | {"recipe": recipe, "step_seconds": seconds, "arms": table, "curves": curves}
    out = given.out or work_dir / ("experiments.json" if given.experiments else "results.json")
    write_json(out, results)
    picture = out.with_suffix(".png")
    figure(curves, min(done["dense"])).savefig(picture, dpi=100, metadata={"Software": None})
    print_table(rows(table))
    print(f"shares of the dense run; curves: {picture}")


def measured_seconds(runs: list[Path], path: Path, rounds: int) -> dict[str, float]:
    """Median seconds by shape, measured once for all the shapes that there are."""
    stored = read_json(path) if path.is_file() else {}
    wanted = {timed.key for run in runs for timed in stage_shapes(run).values()}
    if wanted - stored.keys():
        stored = measure(runs, rounds)
        write_json(path, stored)
    return stored


def print_table(lines: list[list[str]]) -> None:
    header, *body = lines
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left")
    for line in body:
        table.add_row(*line)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
