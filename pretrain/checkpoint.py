"""Canonical checkpoints: the full fp32 master and both moments of every parameter under its name.

Nothing in the tensors depends on world size, ZeRO stage or micro-batch. A checkpoint is a folder

    rank-00000.safetensors ...   each rank's share of whole tensors, as "master/NAME", "exp_avg/NAME", "exp_avg_sq/NAME"
    state.json                   stage, step, data position, optimizer step, loss scale, ticket hash, versions
    manifest.json                size and SHA-256 of every other file, and which file holds which tensor

written under a temporary name and renamed when all ranks are done, so it is complete or absent. All ranks must see the
same folder. Nothing in it is ever unpickled.
"""

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from earlybert.pretrain import distributed
from earlybert.pretrain.engine import MOMENTS, StageEngine
from earlybert.pretrain.errors import UserError
from earlybert.pretrain.files import content_hash, file_hash, read_json, write_json

FORMAT = "earlybert-checkpoint/1"
KINDS = ("master", *MOMENTS)


def _shares(engine: StageEngine) -> dict[str, Tensor]:
    """This rank's share: whole tensors, gathered one parameter at a time to the rank with the least bytes so far."""
    share: dict[str, Tensor] = {}
    load = [0] * distributed.world_size()
    for partition in engine.layout:
        moments = engine.optimizer.state[partition.flat]
        for piece in partition.pieces:
            owner = load.index(min(load))
            load[owner] += piece.shape.numel()
            stacked = partition.gather(piece, [partition.flat, *(moments[kind] for kind in MOMENTS)], destination=owner)
            if stacked is not None:
                share |= {f"{kind}/{piece.name}": full.cpu() for kind, full in zip(KINDS, stacked, strict=True)}
    return share


def save(folder: Path, engine: StageEngine, state: Mapping[str, Any], keep: int) -> None:
    """Writes a checkpoint `folder/step-NNNNNNNN`; all ranks must call it. Older ones beyond `keep` are removed."""
    final = folder / f"step-{state['global_step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    if distributed.rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    distributed.barrier()
    share = _shares(engine)
    name = f"rank-{distributed.rank():05d}.safetensors"
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in share.items()}, temporary / name)
    written = distributed.gather_objects((name, list(share), _entry(temporary / name)))
    if distributed.rank() == 0:
        versions = {package: importlib.metadata.version(package) for package in ("earlybert", "torch", "deepspeed")}
        write_json(temporary / "state.json", {"format": FORMAT, **state, "versions": versions})
        manifest = {
            "format": FORMAT,
            "files": {file: entry for file, _, entry in written} | {"state.json": _entry(temporary / "state.json")},
            "tensors": {key: file for file, keys, _ in written for key in keys},
        }
        write_json(temporary / "manifest.json", manifest | {"sha256": content_hash(manifest)})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        complete = list_checkpoints(folder)
        # Newer ones are damaged: the run went back behind them.
        newer = [path for path in complete if path.name > final.name]
        for path in newer + [path for path in complete if path not in newer][:-keep]:
            shutil.rmtree(path)
    distributed.barrier()


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_hash(path)}


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


class Tensors(Mapping[str, Tensor]):
    """One kind of tensor of a checkpoint by parameter name, each read from disk when asked for."""

    def __init__(self, checkpoint: "Checkpoint", kind: str) -> None:
        self._checkpoint, self._kind = checkpoint, kind

    def __getitem__(self, name: str) -> Tensor:
        key = f"{self._kind}/{name}"
        with safetensors.safe_open(self._checkpoint.path / self._checkpoint.files[key], framework="pt") as file:
            return file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        prefix = f"{self._kind}/"
        return (key.removeprefix(prefix) for key in self._checkpoint.files if key.startswith(prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Checkpoint:
    """A checkpoint on disk. Opening it reads the two JSON files; `verify` compares every byte with the manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")
        self.state: dict[str, Any] = read_json(path / "state.json")
        for name, content in (("manifest.json", self.manifest), ("state.json", self.state)):
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                found = content.get("format") if isinstance(content, dict) else content
                raise UserError(f'{path / name}: "format" is {found!r}; this version reads {FORMAT!r}')
        stated = self.manifest.pop("sha256", None)
        if stated != content_hash(self.manifest):
            raise UserError(f"{path / 'manifest.json'}: its sha256 does not fit its content; the file was changed")
        self.files: dict[str, str] = self.manifest["tensors"]

    @property
    def weights(self) -> Tensors:
        return Tensors(self, "master")

    @property
    def moments(self) -> dict[str, Mapping[str, Tensor]]:
        return {kind: Tensors(self, kind) for kind in MOMENTS}

    def verify(self) -> None:
        """Raises UserError naming the first file that is missing, of another size or changed."""
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                raise UserError(f"{path}: is missing")
            if path.stat().st_size != entry["size"]:
                raise UserError(f"{path}: has {path.stat().st_size} bytes; the manifest says {entry['size']}")
            if file_hash(path) != entry["sha256"]:
                raise UserError(f"{path}: its SHA-256 is not the manifest's; the file was changed")


def newest_intact(folder: Path, warn: Any) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as written; `warn` hears of the damaged ones it passed over."""
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify()
            return checkpoint
        except UserError as error:
            warn(f"skipping a damaged checkpoint: {error}")
    return None
