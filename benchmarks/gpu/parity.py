"""Stage: the same run on a CPU and on the device: fp32 with true products and no dropout, and bf16 beside it."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gpu.runs import command, finish, recipe

from earlybert.core.devices import device_type
from earlybert.core.files import write_json
from earlybert.pretrain.report.timeline import read_lines

STEPS, REHEARSED_STEPS = 20, 6
EXACT = ("--plan", "[search]", "--model.hidden_dropout", "0", "--model.attention_dropout", "0")


def losses(run_dir: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_lines(run_dir) if line["kind"] == "train"])


def main() -> None:
    out, data, rehearse = Path(sys.argv[1]), Path(sys.argv[2]), "--rehearse" in sys.argv
    content = recipe(REHEARSED_STEPS if rehearse else STEPS, tiny=True) | {"matmul_precision": "highest", "export": []}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name, device, precision in (
            ("cpu", "cpu", "fp32"),
            ("fp32", device_type(), "fp32"),
            ("bf16", device_type(), "bf16"),
        ):
            line = command(Path(folder) / name, data, content, *EXACT, "--precision", precision)
            finish(line, DS_ACCELERATOR=device)
            runs[name] = losses(Path(folder) / name)
    apart = {name: np.abs(found - runs["cpu"]) / runs["cpu"] for name, found in runs.items()}
    first, last, half = float(apart["fp32"][:5].max()), float(apart["fp32"][-1]), float(apart["bf16"][-1])
    passed = first < 1e-5 and last < 1e-3 and half < 2e-2
    found: dict[str, Any] = {"first_5": first, "last": last, "bf16_last": half, "passed": passed}
    found["losses"] = {name: values.tolist() for name, values in runs.items()}
    write_json(out, found | {"rehearsal": rehearse})
    sys.exit(0 if passed else "parity: the losses of the device are too far from the CPU's")


if __name__ == "__main__":
    main()
