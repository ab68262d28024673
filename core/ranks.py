"""Which rank this process is, by the environment that torchrun, the deepspeed launcher or srun gives it."""

import os
import warnings

from earlybert.core.errors import UserError


def rank() -> int:
    """Global rank, known from the environment before any process group exists."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of ranks, likewise."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Number of ranks on this machine; of all, where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def check_environment() -> None:
    """Raises UserError where the environment says only half of which rank this is: it must say all or nothing.

    A single rank needs no more than that; its rendezvous is filled in (`distributed.start`). Also raises it for a
    DEEPSPEED_TIMEOUT that is no number of minutes, at which DeepSpeed's import would fail.
    """
    minutes = os.environ.get("DEEPSPEED_TIMEOUT", "1")
    if not minutes.isdecimal() or int(minutes) < 1:
        raise UserError(f"the environment variable DEEPSPEED_TIMEOUT is {minutes!r}; it must be a number of minutes")
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    for name, value in given.items():
        if not value.isdecimal() or (name == "WORLD_SIZE" and int(value) < 1):
            raise UserError(f"the environment variable {name} is {value!r}; it must be a number that a launcher sets")
    if rank() == 0 and world_size() == 1:
        return
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    stated = " and ".join(f"{name} is {value}" for name, value in given.items())
    if missing:
        raise UserError(
            f"in the environment {stated}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; "
            "set all four, use torchrun or deepspeed, or for one process unset them"
        )
    if rank() >= world_size():
        raise UserError(f"in the environment {stated}; RANK must be below WORLD_SIZE")


def warn_once() -> None:
    """Every warning meant for users is shown once, by rank 0; all ranks would say the same at every stage."""
    for category in (UserWarning, FutureWarning, RuntimeWarning):
        warnings.simplefilter("once" if rank() == 0 else "ignore", category)
