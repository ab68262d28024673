"""What a run tells: metrics.jsonl and its trackers. Only rank 0 says anything.

A line of metrics.jsonl has a `kind`, the `global_step` it belongs to, and `time`, seconds since the epoch. Kinds:
"start" (the run began or went on: the layout of its work, and what the interruption before it cost), "train", "time",
"validation", "mask_distance".
"""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from earlybert.core.files import write_text
from earlybert.core.progress import say
from earlybert.pretrain.ticket.text import ticket_markdown
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train.trackers.tracker import Tracker


class Telemetry:
    """Writer of one run's curves; on ranks other than 0 every method does nothing.

    A resumed run first drops the lines that an interrupted one wrote after its checkpoint, so no step appears twice.
    """

    def __init__(
        self,
        run_dir: Path,
        trackers: Sequence[Tracker],
        *,
        enabled: bool,
        resume_after: int,
        layout: Mapping[str, Any],
    ) -> None:
        self.enabled = enabled
        if not enabled:
            return
        path = run_dir / "metrics.jsonl"
        lines = _readable_lines(path)
        kept = [line for line in lines if line["global_step"] <= resume_after or line["kind"] == "start"]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        # Unbuffered: what the disk has not taken stays in `_unwritten` until it does.
        self._metrics = path.open("ab", buffering=0)
        self._unwritten = b""
        self._trackers, self._failed = trackers, [False] * len(trackers)
        self._warned = False
        step = max(0, resume_after)
        self._line("start", step, {**layout, **_costs_of_interruption(lines, step)})

    def scalars(
        self, kind: str, global_step: int, values: Mapping[str, Any], *, untracked: Collection[str] = ()
    ) -> None:
        """One line of metrics.jsonl, and in the trackers one series `kind/name` per number that is not `untracked`."""
        self._line(kind, global_step, values)
        tracked = {name: value for name, value in values.items() if name not in untracked}
        self.tracked_scalars(kind, global_step, tracked)

    def _line(self, kind: str, global_step: int, values: Mapping[str, Any]) -> None:
        if not self.enabled:
            return
        line = {"kind": kind, "global_step": global_step, "time": round(time.time(), 3), **values}
        self._unwritten += (json.dumps(line) + "\n").encode()
        self._guarded(self._write_metrics)

    def tracked_scalars(self, kind: str, global_step: int, values: Mapping[str, Any]) -> None:
        """One series `kind/name` per number, in the trackers alone."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        self._track(lambda tracker: tracker.scalars(numbers, global_step))

    def histogram(self, name: str, values: Tensor, global_step: int) -> None:
        self._track(lambda tracker: tracker.histogram(name, values, global_step))

    def text(self, name: str, markdown: str, global_step: int) -> None:
        self._track(lambda tracker: tracker.text(name, markdown, global_step))

    def hyperparameters(self, values: Mapping[str, Any], results: Sequence[str]) -> None:
        """The run's numbers, and the series whose last values are its results."""
        self._track(lambda tracker: tracker.hyperparameters(values, results))

    def ticket(self, ticket: Ticket, global_step: int) -> None:
        """The ticket as a picture and as text."""
        if self.enabled:
            from earlybert.pretrain.ticket import figures  # matplotlib, which the other ranks need not load

            self._track(lambda tracker: tracker.figure("ticket", figures.ticket_figure(ticket), global_step))
            self.text("ticket", ticket_markdown(ticket), global_step)

    def mask_distances(self, steps: list[int], matrices: dict[str, list[list[float]]], global_step: int) -> None:
        """The matrix of mask distances so far as a picture (EarlyBERT Figure 1)."""
        if self.enabled:
            from earlybert.pretrain.ticket.figures import mask_distance_figure

            self._track(
                lambda tracker: tracker.figure("mask_distance", mask_distance_figure(steps, matrices), global_step)
            )

    def close(self) -> None:
        """Raises OSError when lines of metrics.jsonl are left that the disk does not take."""
        if self.enabled:
            self._write_metrics()
            self._metrics.close()
            for tracker in self._trackers:
                self._guarded(tracker.close)

    def _write_metrics(self) -> None:
        while self._unwritten:
            written = self._metrics.write(self._unwritten)
            self._unwritten = self._unwritten[written:]

    def _track(self, write: Callable[[Tracker], None]) -> None:
        if not self.enabled:
            return
        for index, tracker in enumerate(self._trackers):
            # One that the disk has failed waits until metrics.jsonl is complete again.
            if not (self._failed[index] and self._unwritten):
                self._failed[index] = not self._guarded(partial(write, tracker))

    def _guarded(self, write: Callable[[], None]) -> bool:
        """Curves are not worth a run: on a full disk it says so once and goes on. Returns whether it was written."""
        try:
            write()
        except OSError as error:
            if not self._warned:
                say(f"curves cannot be written ({error}); training continues, and metrics.jsonl is completed later")
            self._warned = True
            return False
        return True


def _costs_of_interruption(lines: list[dict[str, Any]], resumed_step: int) -> dict[str, Any]:
    """When the run was last alive, and the steps that are done again; nothing for a run that begins."""
    if not lines:
        return {}
    # Of the last session alone: an earlier one may have got further, and be lost already.
    last = max((number for number, line in enumerate(lines) if line["kind"] == "start"), default=0)
    reached = max(line["global_step"] for line in lines[last:])
    return {"last_alive": lines[-1]["time"], "lost_steps": max(0, reached - resumed_step)}


def _readable_lines(path: Path) -> list[dict[str, Any]]:
    """Lines that are whole; a killed run may leave half of one, a machine that lost its power anything."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
