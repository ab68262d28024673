"""What a run has written so far."""

import json
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints


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


def require_same(run: Path, other: Path) -> None:
    """Losses, ticket, and the weights and moments of the last checkpoint, bit for bit."""
    assert losses(run) == losses(other)
    assert (run / "ticket.json").read_bytes() == (other / "ticket.json").read_bytes()
    one, two = (Checkpoint(list_checkpoints(each / "checkpoints")[-1]) for each in (run, other))
    assert one.moments.keys() == two.moments.keys()
    stored = [(one.weights, two.weights), *((one.moments[each], two.moments[each]) for each in two.moments)]
    for found, expected in stored:
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def require_close(run: Path, other: Path) -> None:
    """The same steps with the same learning rates, and losses that differ by rounding."""
    found, expected = metrics(run), metrics(other)
    for exact in ("global_step", "stage", "learning_rate"):
        assert [line[exact] for line in found] == [line[exact] for line in expected]
    np.testing.assert_allclose([line["loss"] for line in found], [line["loss"] for line in expected], rtol=1e-5)


def events_of(run_dir: Path) -> EventAccumulator:
    """Everything that TensorBoard reads from the run."""
    kinds = ("scalars", "images", "histograms", "tensors")
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def content(folder: Path) -> dict[str, bytes]:
    """Every file in it, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
