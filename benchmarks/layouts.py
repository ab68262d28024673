"""Does the layout change the result? One recipe, dropout 0, under many launchers, ranks, ZeRO stages and micro-batches.

    python benchmarks/layouts.py [--config RECIPE] [--steps 100] [--only NAME ...] [--out FILE.json] [--FIELD VALUE ...]

Every layout searches for `steps` steps, then trains `steps` steps of the narrow network from the first layout's ticket.
Printed per layout: the largest relative difference of the losses from the first layout's, in the search and in the
narrow stage; whether its own search draws the same heads; how many neurons it would draw differently, and how many of
those lie farther from the cut than the coefficients of the two layouts differ (which would be an error).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from provenance import measured_on

from earlybert.core.files import write_json
from earlybert.pretrain.checkpoint.metrics import of_kind
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, load_recipe
from earlybert.pretrain.report.timeline import read_lines
from earlybert.pretrain.ticket.drawing import keep_mask
from earlybert.pretrain.ticket.search import load_snapshot, recorded_steps, snapshot_path

RUN = Path(__file__).parent.parent / "pretrain" / "run.py"
BIN = Path(sys.executable).parent
PLAIN, DEEPSPEED = [sys.executable], [str(BIN / "deepspeed"), "--num_accelerators", "2"]
TORCHRUN = [str(BIN / "torchrun"), "--nproc_per_node", "2"]
# name: launcher, ZeRO stage, micro-batch (None: the recipe's)
LAYOUTS: dict[str, tuple[list[str], int, int | None]] = {
    "1 rank, ZeRO-1": (PLAIN, 1, None),
    "1 rank, ZeRO-0": (PLAIN, 0, None),
    "1 rank, ZeRO-2": (PLAIN, 2, None),
    "1 rank, ZeRO-3": (PLAIN, 3, None),
    "1 rank, ZeRO-1, micro-batch 24": (PLAIN, 1, 24),
    "deepspeed 2 ranks, ZeRO-0": (DEEPSPEED, 0, None),
    "deepspeed 2 ranks, ZeRO-1": (DEEPSPEED, 1, None),
    "deepspeed 2 ranks, ZeRO-2": (DEEPSPEED, 2, None),
    "deepspeed 2 ranks, ZeRO-3": (DEEPSPEED, 3, None),
    "torchrun 2 ranks, ZeRO-1, micro-batch 24": (TORCHRUN, 1, 24),
}


def launch(name: str, run_dir: Path, config: str, steps: int, overrides: list[str]) -> None:
    """Runs search and narrow phase 1 under one layout."""
    launcher, stage, micro_batch = LAYOUTS[name]
    run_dir.mkdir(parents=True, exist_ok=True)
    content = json.loads(DEFAULT_DEEPSPEED.read_text()) | {"zero_optimization": {"stage": stage}}
    (run_dir / "deepspeed.json").write_text(json.dumps(content))
    port = str(20000 + (os.getpid() * 31 + list(LAYOUTS).index(name)) % 20000)
    command = [*launcher, *(["--master_port", port] if launcher is not PLAIN else []), str(RUN)]
    command += ["--config", config, "--run-dir", str(run_dir), "--deepspeed", str(run_dir / "deepspeed.json")]
    command += ["--plan", "[search, narrow, phase1]", "--search.steps", str(steps), "--narrow.step_factor", "1.0"]
    command += ["--phase1.steps", str(steps), "--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    command += ["--matmul_precision", "highest", "--log_every", "1", "--validation.every", "1000000", *overrides]
    if micro_batch is not None:
        command += ["--phase1.micro_batch", str(micro_batch)]
    # Two ranks share the cores; one rank takes what the caller allows it.
    environment = dict(os.environ) if launcher is PLAIN else os.environ | {"OMP_NUM_THREADS": "1"}
    with (run_dir / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        sys.exit(f"{name} ended with status {code}; its output is in {run_dir / 'log.txt'}")


def losses(run_dir: Path, stage: str) -> np.ndarray:
    """Logged training losses of one stage, float64 [steps]."""
    return np.array([line["loss"] for line in of_kind(read_lines(run_dir), "train") if line["stage"] == stage])


def compare(reference: Path, other: Path) -> dict[str, Any]:
    """How far one layout's run is from the reference's."""
    found: dict[str, Any] = {}
    for stage in ("search", "phase1"):
        expected, actual = losses(reference, stage), losses(other, stage)
        found[f"{stage}_loss_difference"] = float(np.max(np.abs(actual - expected) / expected))
    rule = load_recipe(reference / "config.yaml", []).draw
    last = recorded_steps(reference / "search")[-1]
    first, second = (load_snapshot(snapshot_path(run / "search", last)) for run in (reference, other))
    first_masks, second_masks = first.masks(rule), second.masks(rule)
    found["heads_different"] = int(np.sum(first_masks["heads"] != second_masks["heads"]))
    different = first_masks["neurons"] != second_masks["neurons"]
    magnitude = np.abs(first.neurons_LU)
    layout_difference = float(np.max(np.abs(magnitude - np.abs(second.neurons_LU))))
    kept = keep_mask(first.neurons_LU, rule.neuron_ratio, rule.neuron_scope)
    cut = (magnitude[kept].min() + magnitude[~kept].max()) / 2 if not kept.all() else 0.0
    found["neurons_different"] = int(different.sum())
    found["coefficient_difference"] = layout_difference
    found["neurons_unexplained"] = int(np.sum(different & (np.abs(magnitude - cut) > layout_difference)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=list(LAYOUTS), help="the first layout always runs")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/layouts"))
    parser.add_argument("--out", type=Path)
    arguments, overrides = parser.parse_known_args()
    shutil.rmtree(arguments.work_dir, ignore_errors=True)
    reference_name, *others = list(LAYOUTS) if arguments.only is None else [next(iter(LAYOUTS)), *arguments.only]
    reference = arguments.work_dir / "00"
    launch(reference_name, reference, arguments.config, arguments.steps, overrides)
    neurons = load_snapshot(snapshot_path(reference / "search", 0)).neurons_LU.size
    print(f"reference: {reference_name}; {neurons} neurons in all")
    print(
        f"{'layout':<42}{'search loss':>12}{'narrow loss':>12}{'heads':>7}{'neurons':>9}{'beyond |c| difference':>23}"
    )
    table = {}
    for index, name in enumerate(others, start=1):
        run_dir = arguments.work_dir / f"{index:02d}"
        run_dir.mkdir(parents=True)
        shutil.copy(reference / "ticket.json", run_dir / "ticket.json")
        launch(name, run_dir, arguments.config, arguments.steps, overrides)
        table[name] = row = compare(reference, run_dir)
        print(
            f"{name:<42}{row['search_loss_difference']:>12.1e}{row['phase1_loss_difference']:>12.1e}"
            f"{row['heads_different']:>7}{row['neurons_different']:>9}{row['neurons_unexplained']:>23}",
            flush=True,
        )
    if arguments.out:
        write_json(arguments.out, measured_on("deepspeed") | {"layouts": table})


if __name__ == "__main__":
    main()
