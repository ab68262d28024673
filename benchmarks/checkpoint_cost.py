"""What checkpoints and the stop check cost: time that training waits for them, and memory that a save takes.

    python benchmarks/checkpoint_cost.py [--config quickstart] [--every 100] [--ranks 1 2] [--out FILE.json]

Trains phase 1 of the recipe for a few hundred steps on a prepared corpus, checkpointing every `every` steps, and takes
the time of every part inside the same run:

stop check      the all-reduce at the step border, median of all steps, without the wait for a slower rank
save            what the training loop waits for: checks, copy of the rank's share, completion at a later border
slower          steps that begin while the background thread writes, minus as many median steps
memory          growth of a rank's peak resident memory over a save of a larger network (`MEMORY`), against what is
                allowed: the rank's share and one copy of the largest parameter
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from provenance import measured_on

from earlybert.core.files import write_json

BIN = Path(sys.executable).parent
# A table as large as BERT's word embeddings beside layers of usual size, as in a real network. Here it is that of the
# positions, because the corpus decides the vocabulary.
MEMORY = {
    "model.max_position_embeddings": 40000,
    "model.hidden_size": 512,
    "model.num_layers": 8,
    "model.num_heads": 8,
    "model.intermediate_size": 2048,
    "phase1.global_batch": 4,
    "phase1.micro_batch": 2,
    "phase1.steps": 3,
    "checkpoint_every": 1,
}


def measure(arguments: list[str], out: Path) -> None:
    """One rank: runs pretrain/run.py with clocks around the functions in question; rank 0 writes what it saw."""
    import torch

    from earlybert.core import distributed, ranks
    from earlybert.kernels.partition import Partition
    from earlybert.pretrain import run
    from earlybert.pretrain.checkpoint.writer import CheckpointWriter
    from earlybert.pretrain.train import loop
    from earlybert.pretrain.train.saving import StageCheckpoints
    from earlybert.pretrain.train.stopping import StopRequest

    seen: dict[str, list[float]] = {"border": [], "save": [], "settle": [], "busy": [], "idle": [], "growth": []}
    allowed, writing = 0, False

    def border(stop: StopRequest, checkpoints: StageCheckpoints) -> bool:
        nonlocal writing
        distributed.barrier()
        in_flight, began = checkpoints.writer.in_flight, time.perf_counter()
        stopping = at_step_border(stop, checkpoints)
        seen["settle" if in_flight and not checkpoints.writer.in_flight else "border"].append(
            time.perf_counter() - began
        )
        writing = checkpoints.writer.busy
        return stopping

    def step(*arguments: Any) -> dict[str, Any]:
        metrics = train_step(*arguments)
        seen["busy" if writing else "idle"].append(metrics["seconds"])
        return metrics

    def save(checkpoints: StageCheckpoints) -> None:
        began = time.perf_counter()
        begin_checkpoint(checkpoints)
        seen["save"].append(time.perf_counter() - began)

    def begin(writer: CheckpointWriter, layout: list[Partition], *values: Any) -> None:
        nonlocal allowed
        reset_peak()
        before = resident("VmRSS")
        begin_writing(writer, layout, *values)
        written = writer._writing.result()  # type: ignore[union-attr]
        seen["growth"].append(resident("VmHWM") - before)
        largest = max(piece.shape.numel() for partition in layout for piece in partition.pieces)
        allowed = written.entry["size"] + largest * torch.float32.itemsize

    at_step_border, train_step = loop.at_step_border, loop.train_step
    begin_checkpoint, begin_writing = StageCheckpoints.begin, CheckpointWriter.begin
    mock.patch.object(loop, "at_step_border", border).start()
    mock.patch.object(loop, "train_step", step).start()
    mock.patch.object(StageCheckpoints, "begin", save).start()
    if os.environ.get("MEASURE_MEMORY"):
        mock.patch.object(CheckpointWriter, "begin", begin).start()
    sys.argv[1:] = arguments
    run.main()
    if ranks.rank() == 0:
        out.write_text(json.dumps(seen | {"allowed": allowed, "threads": torch.get_num_threads()}))


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Gives memory that is free back to the system, and lets VmHWM begin anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def launch(ranks: int, folder: Path, arguments: list[str], memory: bool) -> dict[str, Any]:
    """Runs `measure` on so many ranks; what rank 0 saw."""
    out = folder / f"{ranks}-{memory}.json"
    launcher = [sys.executable]
    if ranks > 1:
        port = 20000 + os.getpid() % 20000 + ranks
        launcher = [str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", str(port)]
    environment = os.environ | ({"MEASURE_MEMORY": "1"} if memory else {})
    if ranks > 1:
        environment |= {"OMP_NUM_THREADS": "1"}
    command = [*launcher, __file__, "--measure", str(out), "--run-dir", str(folder / f"run-{ranks}-{memory}")]
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run([*command, *arguments], stdout=log, stderr=log, env=environment).returncode
    if code:
        sys.exit(f"the run ended with status {code}:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return json.loads(out.read_text())


def summary(times: dict[str, Any], memory: dict[str, Any], every: int) -> dict[str, Any]:
    """Shares of the step time at one checkpoint every so many steps, and memory in MB."""
    step = statistics.median(times["idle"])
    border = statistics.median(times["border"])
    save = statistics.median(times["save"]) + (statistics.median(times["settle"]) if times["settle"] else 0.0)
    slower = sum(times["busy"]) - step * len(times["busy"])
    per_save = save + slower / len(times["save"])
    return {
        "step_ms": 1e3 * step,
        "stop_check_share": border / step,
        "save_ms": 1e3 * save,
        "slower_steps_ms": 1e3 * slower / len(times["save"]),
        "checkpoint_share": per_save / (every * step),
        "peak_growth_MB": max(memory["growth"]) / 1e6,
        "allowed_MB": memory["allowed"] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    arguments, overrides = parser.parse_known_args()
    fixed = ["--config", arguments.config, "--plan", "[phase1]", "--export", "[]", "--validation.every", "1000000"]
    fixed += ["--checkpoint_every", str(arguments.every), "--phase1.steps", str(arguments.steps), *overrides]
    table = {}
    print(f"{arguments.config}, a checkpoint every {arguments.every} steps")
    print(
        f"{'ranks':>5}{'step':>10}{'stop check':>12}{'save':>10}{'slower':>10}{'of time':>9}"
        f"{'memory':>10}{'allowed':>10}"
    )
    with tempfile.TemporaryDirectory() as name:
        for ranks in arguments.ranks:
            times = launch(ranks, Path(name), fixed, memory=False)
            larger = [word for field, value in MEMORY.items() for word in (f"--{field}", str(value))]
            memory = launch(ranks, Path(name), [*fixed, *larger], memory=True)
            table[ranks] = row = summary(times, memory, arguments.every)
            print(
                f"{ranks:>5}{row['step_ms']:>7.0f} ms{row['stop_check_share']:>12.2%}{row['save_ms']:>7.0f} ms"
                f"{row['slower_steps_ms']:>7.0f} ms{row['checkpoint_share']:>9.2%}{row['peak_growth_MB']:>7.0f} MB"
                f"{row['allowed_MB']:>7.0f} MB",
                flush=True,
            )
    if arguments.out:
        found = measured_on("deepspeed") | {"every": arguments.every, "ranks": table}
        write_json(arguments.out, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[3:], Path(sys.argv[2]))
    else:
        main()
