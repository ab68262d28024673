"""Which rank this process is, by the environment that torchrun, the deepspeed launcher or srun gives it."""

import os
import warnings


def rank() -> int:
    """Global rank, known from the environment before any process group exists."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of ranks, likewise."""
    return int(os.environ.get("WORLD_SIZE", 1))


def warn_once() -> None:
    """Every warning meant for users is shown once, by rank 0; all ranks would say the same at every stage."""
    for category in (UserWarning, FutureWarning, RuntimeWarning):
        warnings.simplefilter("once" if rank() == 0 else "ignore", category)
