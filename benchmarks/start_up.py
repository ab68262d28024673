"""How long do commands take that only look at things? CPU seconds from the interpreter's start to its end.

    python benchmarks/start_up.py runs/quickstart [--runs 5] [--out FILE.json]

Each command runs several times in a process of its own; printed are the medians of its user and system time, with one
thread, and which heavy packages it imported.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import measured_on

from earlybert.core.errors import UserError
from earlybert.core.files import write_json
from earlybert.pretrain.plan.recipe import load_recipe, run_config_path

HEAVY = ("torch", "transformers", "deepspeed", "datasets", "matplotlib")
PROGRAM = """
import sys
from earlybert.core import cli
try:
    cli.main(sys.argv[1:])
finally:
    print("imported", *sys.modules, file=sys.stderr)
"""


def commands(run_dir: Path, folder: Path) -> dict[str, list[str]]:
    """What is measured, by the name it has in the table."""
    ticket, corpus = str(run_dir / "ticket.json"), str(load_recipe(run_config_path(run_dir), []).data)
    return {
        "--help": ["--help"],
        "train --help": ["train", "--help"],
        "plan": ["plan"],
        "plan --cluster": ["plan", "--config", "bert_large", "--cluster", "4x8 V100-32GB"],
        "prepare verify": ["prepare", "verify", corpus],
        "ticket show": ["ticket", "show", ticket],
        "ticket random": ["ticket", "random", "--like", ticket, "--out", str(folder / "random.json")],
        "checkpoint list": ["checkpoint", "list", str(run_dir)],
        "checkpoint verify": ["checkpoint", "verify", str(run_dir)],
        "report": ["report", str(run_dir), "--out", str(folder / "report")],
        "export": ["export", str(run_dir), "--out", str(folder / "export")],
    }


def cpu_seconds(arguments: list[str]) -> tuple[float, list[str]]:
    """User and system time of one process, and the heavy packages that it imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        sys.exit(f"earlybert {' '.join(arguments)} failed:\n{finished.stderr}")
    modules = finished.stderr.splitlines()[-1].split()
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, [name for name in HEAVY if name in modules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="a finished run with a ticket")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        names = list(commands(arguments.run_dir, Path()))
    except UserError as error:
        parser.error(str(error))
    table = {}
    print(f"{'earlybert':<20}{'CPU seconds':>12}  imports")
    for name in names:
        seconds, heavy = [], list[str]()
        for _ in range(arguments.runs):
            # Export wants an empty folder each time.
            with tempfile.TemporaryDirectory() as folder:
                taken, heavy = cpu_seconds(commands(arguments.run_dir, Path(folder))[name])
            seconds.append(taken)
        table[name] = {"cpu_seconds": round(statistics.median(seconds), 3), "imports": heavy}
        print(f"{name:<20}{statistics.median(seconds):>12.2f}  {', '.join(heavy) or '-'}", flush=True)
    if arguments.out:
        write_json(
            arguments.out, measured_on("transformers", "deepspeed") | {"runs": arguments.runs, "commands": table}
        )


if __name__ == "__main__":
    main()
