"""Stage: the training loop itself, BERT-Base, 40 steps, loading included."""

import statistics
import sys
import tempfile
from pathlib import Path

from gpu.runs import command, finish, recipe

from earlybert.core.files import write_json
from earlybert.pretrain.report.timeline import read_lines


def main() -> None:
    out, data, rehearse = Path(sys.argv[1]), Path(sys.argv[2]), "--rehearse" in sys.argv
    steps, sequences = (4, 4) if rehearse else (40, 128)
    content = recipe(steps, tiny=rehearse) | {"plan": ["phase1"], "export": []}
    content["phase1"] |= {"global_batch": 2 * sequences, "micro_batch": sequences}
    if not rehearse:
        content["model"] = {}  # BERT-Base
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        finish(command(run_dir, data, content))
        lines = read_lines(run_dir)
    # Kernels and caches are made in the first steps.
    steady = [line for line in lines if line["kind"] == "train"][steps // 4 :]
    names = ("tokens_per_second", "utilisation", "seconds", "data_seconds")
    found = {name: statistics.median(line[name] for line in steady) for name in names}
    write_json(out, found | {"times": [line for line in lines if line["kind"] == "time"]})


if __name__ == "__main__":
    main()
