"""Jobs on the virtual cluster that tests/slurm/mini_slurm.sh runs these tests beside."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import BIN

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE")
# Two of the virtual nodes with a rank each; what a test says of its own comes later and wins.
SMALL = ("--nodes=2", "--gpus-per-node=1", "--exclude=node4")


def slurm(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Output of a Slurm command that must succeed."""
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip() or done.stderr.strip()


def comes_true(condition: Callable[[], bool], seconds: float = 300) -> bool:
    """Waits for something to happen; returns whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Job:
    """A job of the cluster, its log and its run directory."""

    number: str
    folder: Path
    run_dir: Path

    @classmethod
    def submit(cls, script: Path, folder: Path, run: str, *arguments: str, options: tuple[str, ...] = ()) -> "Job":
        """`sbatch OPTIONS SCRIPT --run-dir RUN ARGUMENTS` in the folder, with as little changed as possible."""
        command = ("sbatch", "--parsable", *SMALL, *options, str(script), "--run-dir", run, *arguments)
        return cls(slurm(*command, cwd=folder), folder, folder / run)

    def field(self, name: str) -> str:
        """A field of `scontrol show job`; a controller that is busy for a moment is asked again."""
        found: list[str] = []

        def ask() -> bool:
            answer = subprocess.run(["scontrol", "show", "job", self.number], capture_output=True, text=True)
            found[:] = re.findall(rf"\b{name}=(\S+)", answer.stdout)
            return bool(found)

        assert comes_true(ask, 30), f"scontrol does not tell the {name} of job {self.number}"
        return found[0]

    @property
    def state(self) -> str:
        return self.field("JobState")

    @property
    def restarts(self) -> int:
        return int(self.field("Restarts"))

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob(f"*-{self.number}.out"))

    @property
    def runs(self) -> list[str]:
        """How each of its runs ended, as Slurm's job completion log has it."""
        lines = (Path(os.environ["MINI_SLURM_DIR"]) / "jobcomp.txt").read_text().splitlines()
        return [line.split("JobState=")[1].split()[0] for line in lines if line.startswith(f"JobId={self.number} ")]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        """Waits for something that the job does."""
        assert comes_true(condition, seconds), (
            f"waited {seconds:g} s in vain; job {self.number} is {self.state}: {self.log}"
        )

    def wait_for(self, *states: str, seconds: float = 300) -> None:
        self.wait_until(lambda: self.state in states, seconds)

    def require(self, state: str, seconds: float = 500) -> None:
        """Waits for the job's end, which must be this one."""
        self.wait_for(*ENDED, seconds=seconds)
        assert self.state == state, self.log

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: len(self.steps) >= step or self.state in ENDED)
        assert self.state == "RUNNING", self.log

    def wait_in_queue(self, seconds: float = 200) -> None:
        """Waits until the job is back in the queue."""
        self.wait_until(lambda: self.field("Reason") == "BeginTime", seconds)

    def start_again(self, seconds: float = 200) -> None:
        """Spares the job, once it is back in the queue, the two minutes that Slurm would let it wait there."""
        self.wait_in_queue(seconds)
        time.sleep(2)  # started sooner, it fails: its credentials are still revoked
        slurm("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    @property
    def steps(self) -> list[dict]:
        """One entry per step: the stub's history or the trainer's metrics; a line being written is left out."""
        for name in ("history.jsonl", "metrics.jsonl"):
            if (path := self.run_dir / name).is_file():
                lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
                return [line for line in lines if line.get("kind", "train") == "train"]
        return []

    def kill_rank(self, rank: int) -> None:
        """SIGKILL for the process of one rank, wherever it runs: all nodes are on this machine."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if (environment.get("SLURM_JOB_ID"), environment.get("RANK")) == (self.number, str(rank)):
                found.append(process)
        assert found, f"job {self.number} has no rank {rank}:\n{self.log}"
        for process in found:
            process.kill()


def crash(node: str) -> None:
    slurm(os.environ["MINI_SLURM"], "crash", node)


def boot(node: str) -> None:
    """Switches a crashed node on again, and waits until jobs may use it."""
    slurm(os.environ["MINI_SLURM"], "boot", node)
    assert comes_true(lambda: "idle" in slurm("sinfo", "-h", "-n", node, "-o", "%t").split()), node
