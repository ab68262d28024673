"""How soon is the same model there? Dense training, tickets, growth, Muon and Hugging Face, raced on the same text.

    python benchmarks/time_to_loss.py --budget 60 --seeds 0
    python benchmarks/time_to_loss.py --budget 60 --seeds 0 1 2 --arms dense EarlyBERT "random ticket"

Needs EARLYBERT_DATA, or --data CORPUS. A machine with a GPU races BERT-Base, unless the environment has
DS_ACCELERATOR=cpu. Every arm is a run of its own; a call that its budget of minutes ends, or that is interrupted, is
taken up by the next one. Then the steps of all shapes are timed in turn, and a table, a JSON file and a picture say
what came out. The table has the shares of the seconds after which the final losses of dense training with LAMB and with
Muon, and of Hugging Face's Trainer, were met, search and everything else included. Of three learning rates the one that
ends lowest counts. `--FIELD VALUE` changes the recipe of all.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from provenance import measured_on
from race.arms import CONTROLS, arms, command, experiments, make_corpus, references, run_dir, write_recipe
from race.outcome import best, curve, figure, race, rows, verdicts
from race.step_times import measure, stage_shapes
from rich.console import Console
from rich.table import Table

from earlybert.core.devices import device_type
from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json
from earlybert.data_prep.samples.corpus import Corpus

# Not worth starting a run for.
LEAST_SECONDS = 20


def options() -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60.0, help="minutes to train in this call; timing comes after")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", help="names of arms, in their order; default: all, without experiments")
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
    found.arms = {name: everybody[name] for name in found.arms or everybody}
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
    try:
        unigram = Corpus.open(corpus).manifest["unigram_cross_entropy"]
    except UserError as error:
        sys.exit(f"time_to_loss: {error}")
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
    report(given, work_dir, unigram)


def report(given: argparse.Namespace, work_dir: Path, unigram: float) -> None:
    """Table, JSON and picture of the arms that are done, those of earlier calls too; of experiments beside references.

    `unigram` is the validation text's cross-entropy when its tokens are guessed by their frequencies.
    """
    candidates = references(given.device)
    compared = [name for names in candidates.values() for name in names]
    done = finished_runs(work_dir, [*compared, *given.arms] if given.experiments else list(arms(given.device)))
    if not any(done[name] for name in candidates["LAMB"]):
        print("no table yet: no dense run is done, which all are measured against; call again, with that arm")
        return
    runs = [path for by_seed in done.values() for path in by_seed.values()]
    seconds = measured_seconds(runs, work_dir / "step_seconds.json", given.rounds)
    curves = {
        name: {
            seed: curve(path, {stage: seconds[timed.key] for stage, timed in stage_shapes(path).items()})
            for seed, path in by_seed.items()
        }
        for name, by_seed in done.items()
    }
    found = {title: name for title, names in candidates.items() if (name := best(curves, names)) is not None}
    table = race(curves, found)
    recipe = yaml.safe_load((work_dir / "recipe.yaml").read_text())
    results = measured_on("deepspeed") | {"recipe": recipe, "step_seconds": seconds, "unigram_cross_entropy": unigram}
    results |= {"references": found, "arms": table, "curves": curves}
    out = given.out or work_dir / ("experiments.json" if given.experiments else "results.json")
    write_json(out, results)
    picture = out.with_suffix(".png")
    dense = found["LAMB"]
    figure(curves, min(done[dense]), dense).savefig(picture, dpi=100, metadata={"Software": None})
    print_table(rows(table, list(found), unigram))
    print(f"FLOPs, seconds and clock: shares of {dense}; curves: {picture}")
    for title, name in found.items():
        print(f"to {title}'s loss: the final loss of {name}, as a share of its own seconds with the same seed")
    for sentence in verdicts(table, unigram, CONTROLS):
        print(sentence)


def finished_runs(work_dir: Path, names: Iterable[str]) -> dict[str, dict[int, Path]]:
    """By arm and seed the folders of the runs that are done."""
    done: dict[str, dict[int, Path]] = {}
    for name in names:
        prefix = run_dir(work_dir, name, 0).name.removesuffix("0")
        found = {path.parent.name.removeprefix(prefix): path.parent for path in work_dir.glob(f"{prefix}*/DONE")}
        # Beside the runs may lie copies of them, as dense-seed0-backup.
        done[name] = {int(seed): path for seed, path in found.items() if seed.isdecimal()}
    return done


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
    Console(width=240).print(table)


if __name__ == "__main__":
    main()
