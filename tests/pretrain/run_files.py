"""What a run has written so far."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def metrics(run_dir: Path, kind: str = "train") -> list[dict]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["global_step"], line["loss"]) for line in metrics(run_dir)]


def last_step(run_dir: Path) -> int:
    """The last step that a running process has logged; 0 before the first."""
    try:
        return losses(run_dir)[-1][0]
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return 0


def events_of(run_dir: Path) -> EventAccumulator:
    """Everything that TensorBoard reads from the run."""
    kinds = ("scalars", "images", "histograms", "tensors")
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance=dict.fromkeys(kinds, 0)).Reload()
