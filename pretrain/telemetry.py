"""What a run tells: metrics.jsonl, TensorBoard, and progress on the console. Only rank 0 says anything."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from earlybert.pretrain.files import write_text

SECONDS_BETWEEN_LINES = 10.0


class Telemetry:
    """Writer of one run's curves; on ranks other than 0 every method does nothing.

    A resumed run first drops what an interrupted one wrote after its checkpoint, so no step appears twice.
    """

    def __init__(self, run_dir: Path, *, enabled: bool, resume_after: int) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self._metrics_path = run_dir / "metrics.jsonl"
        kept = [line for line in _whole_lines(self._metrics_path) if json.loads(line)["global_step"] <= resume_after]
        write_text(self._metrics_path, "".join(kept))
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_after + 1)

    def scalars(self, kind: str, global_step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and one TensorBoard series `kind/name` per number."""
        if not self.enabled:
            return
        line = {"kind": kind, "global_step": global_step} | values
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            if isinstance(value, float) and math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, global_step)

    def histogram(self, name: str, values: Tensor, global_step: int) -> None:
        if self.enabled:
            self._board.add_histogram(name, values, global_step)

    def text(self, name: str, text: str, global_step: int) -> None:
        if self.enabled:
            self._board.add_text(name, text, global_step)

    def close(self) -> None:
        if self.enabled:
            self._metrics.close()
            self._board.close()


def _whole_lines(path: Path) -> list[str]:
    """Lines that were written to the end; a killed run may leave half of one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


class StageProgress:
    """Progress of one stage with the time left: a bar on a terminal, else a plain line every few seconds."""

    def __init__(self, name: str, total: int, done: int, *, enabled: bool) -> None:
        self.name, self.total, self.enabled = name, total, enabled
        self._first = self._done = done
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def update(self, done: int, note: str) -> None:
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self.enabled and (time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or done == self.total):
            self._last_line = time.monotonic()
            left = (self.total - done) * (self._last_line - self._began) / max(1, done - self._first)
            print(f"{self.name} {done}/{self.total}  {note}  {clock(left)} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def say(message: str, *, enabled: bool = True) -> None:
    """A plain line on standard error."""
    if enabled:
        print(message, file=sys.stderr, flush=True)
