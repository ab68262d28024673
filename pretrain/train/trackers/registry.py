"""The trackers by their names in a recipe."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json
from earlybert.pretrain.train.trackers.services import Service, Trackio, Wandb
from earlybert.pretrain.train.trackers.tensorboard import TensorBoard
from earlybert.pretrain.train.trackers.tracker import Tracker

SERVICES: dict[str, type[Service]] = {service.library_name: service for service in (Wandb, Trackio)}


def require_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose library is not there. Nothing is imported."""
    for name in names:
        found = importlib.util.find_spec(name)
        # Without an origin it is only a folder of that name, such as wandb leaves in the current one.
        if found is None or found.origin is None:
            raise UserError(f"trackers has {name}, which is not installed; pip install 'earlybert[{name}]' installs it")


def open_trackers(names: Sequence[str], run_dir: Path, resume_after: int) -> list[Tracker]:
    """Those that a recipe names, on rank 0. The run goes on after the step `resume_after`; at -1 it begins.

    Raises UserError where one cannot begin.
    """
    trackers: list[Tracker] = []
    for name in dict.fromkeys(names):
        if name in SERVICES:
            trackers.append(SERVICES[name](run_dir, _run_id(run_dir / "trackers.json")))
        else:
            trackers.append(TensorBoard(run_dir, resume_after))
    return trackers


def _run_id(path: Path) -> str:
    """What the services know this run by, for as long as its folder has the file."""
    if not path.is_file():
        write_json(path, {"run_id": uuid4().hex[:8]})
    return str(read_json(path)["run_id"])
