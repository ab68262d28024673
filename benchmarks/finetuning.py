"""Prints the tables of folders of `earlybert finetune`, and what a searched ticket gains over a random one.

    python benchmarks/finetuning.py OUT [OUT ...] [--json benchmarks/results/finetuning.json]

Every folder's `earlybert` is compared with its random tickets seed by seed, or with those of the first folder where it
has none (another ranking, say): the mean difference in points of the main score, and its standard error. All results
are stored as one file.
"""

import argparse
import math
import statistics
from pathlib import Path

from provenance import measured_on

from earlybert.core.files import read_json, write_json
from earlybert.finetune.results import Grouped, Result, main_scores, print_tables, read_results


def differences(task: str, results: list[Result], base: list[Result]) -> list[float]:
    """By seed, of the seeds that both have."""
    scores, others = (
        dict(zip((result["seed"] for result in found), main_scores(task, found), strict=True))
        for found in (results, base)
    )
    return [scores[seed] - others[seed] for seed in scores if seed in others]


def print_differences(folder: Path, grouped: Grouped, base: Grouped) -> None:
    """Searched minus random for every task."""
    for (task, method), results in grouped.items():
        if method != "earlybert" or not (found := differences(task, results, base.get((task, "random"), []))):
            continue
        mean, seeds = f"{statistics.mean(found):+.2f} points", len(found)
        error = f"standard error {statistics.stdev(found) / math.sqrt(seeds):.2f}, " if seeds > 1 else ""
        print(f"{folder.name}, {task}: searched minus random {mean}, {error}{seeds} seed(s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+", help="folders that earlybert finetune was given as --out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    grouped = {folder: read_results(folder) for folder in arguments.out}
    if empty := [str(folder) for folder, found in grouped.items() if not found]:
        parser.error(f"{empty[0]} has no results of earlybert finetune")
    parts = []
    for folder, found in grouped.items():
        print_tables(folder)
        settings = read_json(folder / "config.json")
        # Where things lay on that machine says nothing.
        settings = {name: value for name, value in settings.items() if name not in ("model", "data")}
        parts.append({"settings": settings, "results": [result for results in found.values() for result in results]})
    for folder, found in grouped.items():
        print_differences(folder, found, grouped[arguments.out[0]] | found)
    if arguments.json:
        content = {"measured_on": measured_on("transformers", "accelerate"), "folders": parts}
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
