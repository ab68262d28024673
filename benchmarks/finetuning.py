"""Prints the tables of a folder of `earlybert finetune` and stores all its results as one file.

python benchmarks/finetuning.py OUT [--json benchmarks/results/finetuning.json]
"""

import argparse
from pathlib import Path

from provenance import measured_on

from earlybert.core.files import read_json, write_json
from earlybert.finetune.results import print_tables, read_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that earlybert finetune was given as --out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print_tables(arguments.out)
    if arguments.json:
        settings = read_json(arguments.out / "config.json")
        # Where things lay on that machine says nothing.
        settings = {name: value for name, value in settings.items() if name not in ("model", "data")}
        results = [result for found in read_results(arguments.out).values() for result in found]
        content = {"measured_on": measured_on("transformers", "accelerate"), "settings": settings, "results": results}
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
