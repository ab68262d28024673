"""What must stay when a run goes on, and what may differ."""

from pathlib import Path

from earlybert.core.errors import UserError
from earlybert.pretrain.plan.recipe import Recipe

# What may differ: where things lie, how the work is laid out and how precisely it is computed. Every step has its
# samples and its learning rate all the same; losses differ by rounding and by what dropout draws.
LAYOUT_FIELDS = (
    "data",
    "initial",
    "deepspeed",
    "precision",
    "matmul_precision",
    "deterministic",
    "compile",
    "loader_workers",
    "max_skipped_updates",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "trackers",
    "phase1.micro_batch",
    "phase2.micro_batch",
)


def require_same_run(stored: Recipe, wanted: Recipe, path: Path) -> None:
    """Raises UserError when a run directory is asked to go on with something else than it began with."""
    before, after = stored.flat(), wanted.flat()
    for name, value in after.items():
        if value != before.get(name) and name not in LAYOUT_FIELDS:
            raise UserError(
                f"{name} is {value!r}, but this run began with {before.get(name)!r} ({path}); "
                "keep that value or choose another --run-dir"
            )
