"""Small runs that the stages start: on a corpus of both lengths, 128 and 512."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

RUN = Path(__file__).parent.parent.parent / "pretrain" / "run.py"
BIN = Path(sys.executable).parent
LENGTHS = (128, 512)
# Seconds for killed processes to be gone; one that waits for a driver can take as long.
LONGEST_END = 10


def recipe(steps: int, *, tiny: bool) -> dict:
    """The whole method in so many steps a stage; tiny networks for a rehearsal."""
    model = (64, 2, 4, 192) if tiny else (256, 4, 4, 1024)
    names = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
    phase = {"max_predictions": 20, "learning_rate": 4e-3, "warmup": 0.3, "steps": steps}
    size = 4 if tiny else 64
    return {
        "model": dict(zip(names, model, strict=True)),
        "search": {"steps": steps, "snapshot_every": max(1, steps // 4)},
        "draw": {"head_ratio": 0.25, "neuron_ratio": 0.3, "width_multiple": 32},
        "narrow": {"step_factor": 1.0},
        "phase1": phase | {"length": LENGTHS[0], "global_batch": size, "micro_batch": size // 2},
        "phase2": phase | {"length": LENGTHS[1], "max_predictions": 80, "global_batch": 4, "micro_batch": 2},
        "validation": {"every": steps, "samples": 8},
        "checkpoint_every": max(1, steps // 3),
        "log_every": 1,
        "export": ["earlybert", "bert"],
    }


def command(run_dir: Path, data: Path, content: dict, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """The command line of a run; writes its recipe beside the run directory."""
    path = run_dir.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    start = list(launcher) or [sys.executable]
    return [*start, str(RUN), "--config", str(path), "--data", str(data), "--run-dir", str(run_dir), *overrides]


def finish(line: list[str], **environment: str) -> None:
    """Runs to the end; raises RuntimeError with the end of its output."""
    done = subprocess.run(
        line, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"status {done.returncode} of {' '.join(line)}\n{done.stdout[-4000:]}")


def kill_all(process: subprocess.Popen[str]) -> None:
    """The process and all that it has started, whatever their sessions: torchrun's ranks have their own.

    Returns when what it has started is gone: a signal is only on its way when `kill` returns. The process itself is the
    caller's to wait for.
    """
    root = psutil.Process(process.pid)
    started = root.children(recursive=True)
    for one in (root, *started):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(started, timeout=LONGEST_END)
