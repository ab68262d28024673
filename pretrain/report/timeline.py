"""What metrics.jsonl says about time: the clock across restarts, what interruptions cost, what each step had seen."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.pretrain.checkpoint.metrics import Lines, of_kind, read_metrics, score_names
from earlybert.pretrain.network.losses.part import LossPart

TIME_PARTS = ("forward_backward", "communication", "optimizer", "data", "checkpoint", "validation")
# What makes the same step take another time, as the lines of kind "start" name it. Older versions wrote the first two.
LAYOUT = {
    "ranks": "number of ranks",
    "device": "device",
    "precision": "precision",
    "matmul_precision": "precision of fp32 products",
    "compile": "compilation",
    "deterministic": "choice of deterministic operations",
    "zero_stage": "ZeRO stage",
}
# What is read of the lines of these kinds.
FIELDS = {
    "start": {"ranks", "device"},
    "train": {"stage", "step", "seconds", "loss"},
    "time": {"stage", *TIME_PARTS},
    "validation": {"stage", "step", "loss"},
}


@dataclass(frozen=True)
class Session:
    """One stretch of a run between its start (or a restart) and the last sign of life: seconds since the epoch."""

    began: float
    ended: float
    ranks: int
    device: str
    lost_steps: int

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def read_lines(run_dir: Path, parts: Sequence[LossPart] = ()) -> Lines:
    """All lines of metrics.jsonl in their order; raises UserError where there is none or one that no run writes.

    `parts` are those whose scores every step and validation must have.
    """
    scores = score_names(parts)
    lines = read_metrics(run_dir, {kind: own | (scores if "loss" in own else set()) for kind, own in FIELDS.items()})
    if not lines:
        raise UserError(f"{run_dir}: has no lines in metrics.jsonl; it must be the directory of a run that has begun")
    return lines


def sessions(lines: Lines) -> list[Session]:
    """The run's sessions, first to last. `lost_steps` are those that the session after it had to do again."""
    starts = of_kind(lines, "start")
    every = []
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        ended = following["last_alive"] if following else max(start["time"], lines[-1]["time"])
        lost = following["lost_steps"] if following else 0
        every.append(Session(start["time"], ended, start["ranks"], start["device"], lost))
    return every


def changed_layout(lines: Lines) -> list[str]:
    """What changed between the run's sessions so that times of its steps do not compare."""
    starts = of_kind(lines, "start")
    return [title for name, title in LAYOUT.items() if len({start[name] for start in starts if name in start}) > 1]


def last_layout(lines: Lines) -> dict[str, Any]:
    """What the time of a step depends on beside the plan, at the run's last start."""
    return {name: start[name] for start in of_kind(lines, "start")[-1:] for name in LAYOUT if name in start}


def running_seconds(lines: Lines) -> list[float]:
    """Seconds that the run had been running when each line was written; the time between sessions does not count."""
    seconds, before, began = [], 0.0, lines[0]["time"]
    for line in lines:
        if line["kind"] == "start":
            before += line.get("last_alive", began) - began
            began = line["time"]
        seconds.append(before + line["time"] - began)
    return seconds


def accelerator_hours(every: list[Session]) -> float:
    """Hours times ranks."""
    return sum(session.seconds * session.ranks for session in every) / 3600


@dataclass(frozen=True)
class Interruptions:
    """How often a run was interrupted, and the seconds that cost: repeated steps, starting again, standing still."""

    restarts: int
    lost_steps: int
    lost_seconds: float
    starting_seconds: float
    down_seconds: float


def interruptions(lines: Lines) -> Interruptions:
    """What metrics.jsonl says of them."""
    every = sessions(lines)
    steps = [line["seconds"] for line in of_kind(lines, "train")]
    lost = sum(session.lost_steps for session in every)
    starting = []
    for session in every[1:]:
        first = next((line for line in of_kind(lines, "train") if line["time"] > session.began), None)
        if first is not None and first["time"] <= session.ended:
            starting.append(first["time"] - first["seconds"] - session.began)
    return Interruptions(
        restarts=len(every) - 1,
        lost_steps=lost,
        lost_seconds=lost * statistics.median(steps) if steps else 0.0,
        starting_seconds=sum(starting),
        down_seconds=sum(after.began - before.ended for before, after in itertools.pairwise(every)),
    )
