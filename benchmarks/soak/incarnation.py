"""One start of run.py in some layout, watched from outside until all its processes are gone. Linux only."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from earlybert.pretrain.checkpoint.checkpoint import list_checkpoints
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED

RUN = Path(__file__).parent.parent.parent / "pretrain" / "run.py"
BIN = Path(sys.executable).parent
# Seconds after which a run of which nothing is seen or heard counts as hanging, however busy the machine.
PATIENCE = 180.0


@dataclass(frozen=True)
class Layout:
    """Launcher (python, torchrun or deepspeed), ranks, ZeRO stage, and the micro-batch if it is not the recipe's."""

    launcher: str = "python"
    ranks: int = 1
    zero_stage: int = 1
    micro_batch: int | None = None

    def __str__(self) -> str:
        micro_batch = f", micro-batch {self.micro_batch}" if self.micro_batch else ""
        return f"{self.launcher}, {self.ranks} rank{'s' * (self.ranks > 1)}, ZeRO-{self.zero_stage}{micro_batch}"

    def command(self, folder: Path) -> list[str]:
        """run.py in this layout; `folder` gets the DeepSpeed file."""
        file = folder / f"zero-{self.zero_stage}.json"
        content = json.loads(DEFAULT_DEEPSPEED.read_text()) | {"zero_optimization": {"stage": self.zero_stage}}
        file.write_text(json.dumps(content))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        launchers = {
            "python": [sys.executable],
            "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", str(self.ranks), "--master_port", port],
            "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", str(self.ranks), "--master_port", port],
        }
        command = [*launchers[self.launcher], str(RUN), "--deepspeed", str(file)]
        if self.micro_batch:
            for phase in ("phase1", "phase2"):
                command += [f"--{phase}.micro_batch", str(self.micro_batch)]
        return command


def checkpoint_steps(run_dir: Path) -> dict[int, Path]:
    """The complete checkpoints by global step, oldest first."""
    return {int(path.name.removeprefix("step-")): path for path in list_checkpoints(run_dir / "checkpoints")}


def newest_step(run_dir: Path) -> int:
    """Global step of the newest complete checkpoint, 0 without one."""
    return max(checkpoint_steps(run_dir), default=0)


def logged_step(metrics: Path) -> int:
    """Global step of the newest complete training line of metrics.jsonl, 0 without one."""
    # The last piece is empty or half a line, and a step has at most three other lines.
    lines = [json.loads(line) for line in metrics.read_bytes().split(b"\n")[:-1][-4:]]
    return max((line["global_step"] for line in lines if line["kind"] == "train"), default=0)


class Incarnation:
    """One start of run.py on a run directory; its output is appended to `log`."""

    def __init__(self, run_dir: Path, layout: Layout, arguments: list[str], log: Path) -> None:
        self.run_dir, self.layout, self.log = run_dir, layout, log
        self._metrics = run_dir / "metrics.jsonl"
        self._metrics_before = self._metrics.stat().st_ino if self._metrics.is_file() else None
        self._log_before = log.stat().st_size if log.is_file() else 0
        self._seen: set[psutil.Process] = set()
        command = [*layout.command(log.parent), "--run-dir", str(run_dir), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("a") as output:
            self.process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def step(self) -> int:
        """Newest global step that this start logged, 0 before it logged one.

        A start first replaces metrics.jsonl by what its checkpoint knows of; until then it is the one before's.
        """
        if not self._metrics.is_file() or self._metrics.stat().st_ino == self._metrics_before:
            return 0
        return logged_step(self._metrics)

    def output(self) -> str:
        """What it has printed so far."""
        with self.log.open(errors="replace") as file:
            file.seek(self._log_before)
            return file.read()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came to hold before the run ended; raises TimeoutError when the run hangs."""
        traces, deadline = self._traces(), time.monotonic() + PATIENCE
        while not condition():
            if not self.running:
                return condition()
            if (newest := self._traces()) != traces:
                traces, deadline = newest, time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                raise TimeoutError(f"neither printed nor logged anything for {PATIENCE:.0f} s")
            time.sleep(0.002)
        return True

    def _traces(self) -> list[tuple[int, int]]:
        """What changes as long as the run gets on."""
        states = [path.stat() for path in (self.log, self._metrics) if path.is_file()]
        return [(state.st_ino, state.st_size) for state in states]

    def ranks(self) -> list[psutil.Process]:
        """The processes that train: those to which a launcher gave a rank, else the only one."""
        if self.layout.launcher == "python":
            return [self.process]
        found = {process.pid: process for process in self._descendants() if _has_rank(process)}
        self._seen.update(found.values())
        # A rank's own processes, which load data, have its environment.
        return [process for process in found.values() if _parent(process) not in found]

    def _descendants(self) -> list[psutil.Process]:
        try:
            return self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self) -> int:
        """Waits until launcher and ranks are gone; returns the exit status. Raises TimeoutError when one stays."""
        self.wait_until(lambda: False)
        status = self.process.wait()
        deadline = time.monotonic() + PATIENCE
        while any(map(_alive, self._seen)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"ended with status {status}, but a rank went on for {PATIENCE:.0f} s")
            time.sleep(0.02)
        return status

    def destroy(self) -> None:
        """Ends whatever is left of it."""
        for process in {*self._descendants(), *self._seen, self.process}:
            send("SIGKILL", process)


def _has_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ()
    except psutil.Error:
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def _alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that its dead launcher did not reap does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(name: str, process: psutil.Process) -> None:
    """Sends a signal by name, if the process is still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(getattr(signal, name))
