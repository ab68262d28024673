"""Canonical checkpoints: the full fp32 master and the moments of every parameter under its name.

Nothing in the tensors depends on world size, ZeRO stage or micro-batch. A checkpoint is a folder

    rank-00000.safetensors ...   each rank's share of whole tensors, as "master/NAME", "exp_avg/NAME", "exp_avg_sq/NAME"
                                 (Muon's matrices have no exp_avg_sq); of the coefficients of a search by importance
                                 also what that has added up, as "importance/NAME"
    state.json                   stage, step, data position, optimizer step, loss scale, ticket hash, versions
    manifest.json                size and SHA-256 of every other file, and which file holds which tensor

written under a temporary name and renamed when all ranks are done, so it is complete or absent. All ranks must see the
same folder. Nothing in it is ever unpickled.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from earlybert.core.errors import UserError
from earlybert.core.files import content_hash, file_hash, read_json
from earlybert.kernels.sizes import MOMENTS
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.network.parameters import is_coefficient, moments_of
from earlybert.pretrain.network.state import TrainingState, Weights

if TYPE_CHECKING:
    from torch import Tensor

FAMILY, VERSION = "earlybert-checkpoint", 1
FORMAT = f"{FAMILY}/{VERSION}"

# What the tensors are called that a search by importance adds up.
IMPORTANCE = "importance"

# Beside the folder of checkpoints: the global step of the newest one that was ever complete, 0 before the first.
NEWEST = "newest_checkpoint.json"


class UnreachableError(UserError):
    """A checkpoint that may well be intact, but whose files cannot be reached now: none to be passed over."""


class OtherVersionError(UserError):
    """A checkpoint of another version of this program: not damaged, but not to be read or replaced by this one."""


def _require_reachable(path: Path) -> None:
    """Raises UnreachableError for a link to what is not there, and OSError for what may not be looked at."""
    if path.is_symlink() and not path.exists():
        raise UnreachableError(
            f"{path}: is a link to {path.readlink()}, which is not there; make it reachable, or remove the checkpoint"
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for path in entries(folder) if path.is_dir()]


def entries(folder: Path) -> list[Path]:
    """Whatever is called like a checkpoint, oldest first; raises OSError where the folder cannot be looked at."""
    return sorted(path for path in folder.iterdir() if path.name.startswith("step-")) if folder.exists() else []


class Tensors(Mapping[str, "Tensor"]):
    """One of the tensors that a checkpoint stores of every parameter, by name, each read from disk when asked for."""

    def __init__(self, checkpoint: "Checkpoint", stored: str) -> None:
        self._checkpoint, self._stored = checkpoint, stored

    def __getitem__(self, name: str) -> "Tensor":
        key = f"{self._stored}/{name}"
        with self._checkpoint.open_shard(self._checkpoint.files[key]) as file:
            return file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        prefix = f"{self._stored}/"
        return (key.removeprefix(prefix) for key in self._checkpoint.files if key.startswith(prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Checkpoint:
    """A checkpoint on disk. Opening it reads the two JSON files; `verify` compares every byte with the manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for link in (path, path / "manifest.json", path / "state.json"):
            _require_reachable(link)
        self.manifest = read_json(path / "manifest.json")
        state = read_json(path / "state.json")
        for name, content in (("manifest.json", self.manifest), ("state.json", state)):
            found = content.get("format") if isinstance(content, dict) else None
            if found != FORMAT:
                kind = OtherVersionError if str(found).startswith(f"{FAMILY}/") else UserError
                raise kind(f'{path / name}: "format" is {found!r}; this version reads {FORMAT!r}')
        stated = self.manifest.pop("sha256", None)
        if stated != content_hash(self.manifest):
            raise UserError(f"{path / 'manifest.json'}: its sha256 does not fit its content; the file was changed")
        try:
            listed = {name for name, entry in self.manifest["files"].items() if {"size", "sha256"} <= entry.keys()}
            named = {*self.manifest["files"], *self.manifest["tensors"].values(), "state.json"}
            strangers = sorted(name for name in named if name not in listed or Path(name).name != name)
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path / 'manifest.json'}: lacks a table of files and their tensors") from None
        if strangers:
            raise UserError(f"{path / 'manifest.json'}: names the file {strangers[0]!r}, which is not in it")
        self.state = RunState.from_content(state, path / "state.json")
        self.files: dict[str, str] = self.manifest["tensors"]

    @property
    def weights(self) -> Tensors:
        return Tensors(self, "master")

    @property
    def moments(self) -> dict[str, Weights]:
        return {moment: Tensors(self, moment) for moment in MOMENTS}

    @property
    def training_state(self) -> TrainingState:
        """What training goes on from; each tensor is read when it is asked for."""
        importance = Tensors(self, IMPORTANCE)
        return TrainingState(self.weights, self.moments, self.state.optimizer_step, self.state.loss_scale, importance)

    def open_shard(self, name: str) -> Any:
        """One of the safetensors files, mapped; raises UserError for anything else."""
        try:
            return safetensors.safe_open(self.path / name, framework="pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{self.path / name}: cannot be read as safetensors ({error})") from None

    def require_parameters(self, expected: Mapping[str, tuple[int, ...]], *, importance: bool = False) -> None:
        """Raises UserError unless the tensors are exactly those of a model with these parameters.

        `importance` says whether it is searched by that, so that its coefficients have it.
        """
        kind = self.state.optimizer["type"]
        wanted = {
            f"{stored}/{name}": shape
            for name, shape in expected.items()
            for stored in ("master", *moments_of(name, kind))
        }
        if importance:
            wanted |= {f"{IMPORTANCE}/{name}": shape for name, shape in expected.items() if is_coefficient(name)}
        if missing := sorted(wanted.keys() ^ self.files.keys()):
            where = (
                "the model has it, the checkpoint does not" if missing[0] in wanted else "the model has no such tensor"
            )
            raise UserError(f"{self.path}: is a checkpoint of another model than the recipe's; {missing[0]}: {where}")
        for file in sorted(set(self.files.values())):
            with self.open_shard(file) as shard:
                for key in (key for key, holder in self.files.items() if holder == file):
                    found = tuple(shard.get_slice(key).get_shape())
                    if found != wanted[key]:
                        raise UserError(
                            f"{self.path}: is a checkpoint of another model than the recipe's; {key} is {found}, "
                            f"the model's is {wanted[key]}"
                        )

    def verify(self) -> None:
        """Raises UserError naming the first file that is missing, of another size or changed."""
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            _require_reachable(path)
            if not path.is_file():
                raise UserError(f"{path}: is missing")
            if path.stat().st_size != entry["size"]:
                raise UserError(f"{path}: has {path.stat().st_size} bytes; the manifest says {entry['size']}")
            if file_hash(path) != entry["sha256"]:
                raise UserError(f"{path}: its SHA-256 is not the manifest's; the file was changed")


def newest_intact(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as written; `warn` hears of the damaged ones it passed over.

    Raises OtherVersionError where a newer one was written by another version of this program, and UnreachableError or
    OSError where its files cannot be reached: going on from an older one would throw it away.
    """
    for path in reversed(entries(folder)):
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify()
            return checkpoint
        except (OtherVersionError, UnreachableError):
            raise
        except UserError as error:
            warn(f"skipping a damaged checkpoint: {error}")
    return None


def signs_of_progress(run_dir: Path, checkpoint_every: int) -> str | None:
    """What says that a run without an intact checkpoint once had one; None where it has only begun."""
    folder, newest, metrics = run_dir / "checkpoints", run_dir / NEWEST, run_dir / "metrics.jsonl"
    if folder.is_symlink() and not folder.exists():
        return f"{folder} is a link to {folder.readlink()}, which is not there"
    if names := [path.name for path in entries(folder)]:
        return f"none of {', '.join(names)} in {folder} is intact"
    if newest.is_file():
        step = read_json(newest)["global_step"]
        return f"{folder} lacks the checkpoint of step {step}" if step else None
    # Versions before this file wrote a checkpoint at least so often.
    reached = max(map(_global_step, metrics.read_bytes().split(b"\n")), default=0) if metrics.is_file() else 0
    return f"{metrics} goes to step {reached}" if reached >= checkpoint_every else None


def _global_step(line: bytes) -> int:
    try:
        return int(json.loads(line)["global_step"])
    except (ValueError, KeyError, TypeError):
        return 0
