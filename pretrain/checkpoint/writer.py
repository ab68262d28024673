"""Writing canonical checkpoints in the background while training goes on. Their form: `checkpoint.py`.

Training waits only until each rank has copied its share of the state to CPU memory. A thread then writes and hashes the
share under a temporary name; the ranks learn at a later step border that all threads are done, and rank 0 renames.
Threads never communicate: collectives stay in the order of the training loop.
"""

import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from earlybert.core import distributed, ranks
from earlybert.core.files import content_hash, file_entry, open_to_readers, write_json
from earlybert.kernels.partition import Partition
from earlybert.kernels.sizes import MOMENTS
from earlybert.pretrain.checkpoint.checkpoint import FORMAT, IMPORTANCE, NEWEST, list_checkpoints
from earlybert.pretrain.checkpoint.state import RunState


@dataclass(frozen=True)
class _Written:
    """What one rank wrote: a file, the tensors in it and its manifest entry; or why it could not."""

    file: str
    tensors: list[str]
    entry: dict[str, Any]
    error: str | None = None


class CheckpointWriter:
    """Writes the checkpoints of a run, at most one at a time. Every rank has one; all ranks call its methods together.

    Args:
        folder: The run's checkpoints; all ranks see the same one.
        keep: How many of the newest stay.
        newest_step: Global step of the newest complete one, 0 where there is none; kept up to date.
    """

    def __init__(self, folder: Path, keep: int, newest_step: int) -> None:
        self.folder, self.keep, self.newest_step = folder, keep, newest_step
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._state: RunState | None = None
        self._writing: Future[_Written] | None = None
        if ranks.rank() == 0:
            for leftover in folder.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._note(newest_step)
        distributed.barrier()

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint was begun and not settled yet; the same on every rank."""
        return self._writing is not None

    @property
    def busy(self) -> bool:
        """Whether this rank's share of it is still being written."""
        return self._writing is not None and not self._writing.done()

    def begin(
        self, layout: list[Partition], optimizer: Optimizer, state: RunState, importance: Mapping[str, Tensor]
    ) -> None:
        """Copies masters and moments and starts to write `folder/step-NNNNNNNN`. None may be in flight.

        `layout` says where the optimizer holds every parameter. `importance` is written as it is, by rank 0.
        """
        assert not self.in_flight, "settle the checkpoint before"
        self._state = replace(state)
        share = _share(layout, optimizer)
        if ranks.rank() == 0:
            share |= {f"{IMPORTANCE}/{name}": tensor for name, tensor in importance.items()}
        self._writing = self._thread.submit(_write, self._temporary(state), share)

    def settle(self) -> str | None:
        """Makes the checkpoint in flight complete, waiting for the threads where they are not done.

        Returns None or, on every rank, why it could not be written; nothing of it is left on disk then.
        """
        assert self._writing is not None and self._state is not None
        shares = distributed.gather_objects(self._writing.result())
        state, self._writing = self._state, None
        failures = [f"rank {rank}: {share.error}" for rank, share in enumerate(shares) if share.error]
        if ranks.rank() == 0:
            try:
                if not failures:
                    self._publish(state, shares)
            except OSError as error:
                failures.append(str(error))
            shutil.rmtree(self._temporary(state), ignore_errors=True)
        failure = distributed.broadcast_object("; ".join(failures))
        if failure:
            return failure
        self.newest_step = state.global_step
        return None

    def _final(self, state: RunState) -> Path:
        return self.folder / f"step-{state.global_step:08d}"

    def _temporary(self, state: RunState) -> Path:
        return self.folder / f".{self._final(state).name}.tmp"

    def _publish(self, state: RunState, shares: list[_Written]) -> None:
        """Closes the folder with state and manifest, gives it its name, and removes what is no longer wanted."""
        temporary, final = self._temporary(state), self._final(state)
        versions = {package: importlib.metadata.version(package) for package in ("earlybert", "torch", "deepspeed")}
        write_json(temporary / "state.json", {"format": FORMAT, **state.content(), "versions": versions})
        manifest = {
            "format": FORMAT,
            "files": {share.file: share.entry for share in shares}
            | {"state.json": file_entry(temporary / "state.json")},
            "tensors": {name: share.file for share in shares for name in share.tensors},
        }
        write_json(temporary / "manifest.json", manifest | {"sha256": content_hash(manifest)})
        present = list_checkpoints(self.folder)
        before = [path for path in present if path.name < final.name]
        # The others are damaged: the run went back behind them.
        unwanted = [_set_aside(path) for path in present if path not in before]
        temporary.rename(final)
        self._note(state.global_step)
        unwanted += [_set_aside(path) for path in before[: max(0, len(before) + 1 - self.keep)]]
        for path in unwanted:
            # To free gigabytes takes a file system its time; the next write waits for it, the training does not.
            self._thread.submit(shutil.rmtree, path, ignore_errors=True)

    def _note(self, global_step: int) -> None:
        """Writes down that there is one, so that its loss is not taken for a run that has just begun."""
        with suppress(OSError):  # the next one is noted again
            write_json(self.folder.parent / NEWEST, {"global_step": global_step})


def _set_aside(path: Path) -> Path:
    """Renames a checkpoint before it is removed, so that no half of one is ever taken for a checkpoint."""
    return path.rename(path.with_name(f".{path.name}.old"))


def _share(layout: list[Partition], optimizer: Optimizer) -> dict[str, Tensor]:
    """This rank's share: whole tensors on the CPU, each gathered to the rank that had the least before it."""
    load = [0] * ranks.world_size()
    owners: dict[str, int] = {}
    for partition in layout:
        copies = len(_stored(partition, optimizer))
        for piece in partition.pieces:
            owners[piece.name] = load.index(min(load))
            load[owners[piece.name]] += copies * piece.shape.numel()
    # One block for all of them: thousands of tensors between buffers that come and go would tear the heap to pieces.
    block = torch.empty(load[ranks.rank()])
    share: dict[str, Tensor] = {}
    for partition in layout:
        for piece in partition.pieces:
            for stored, tensor in _stored(partition, optimizer).items():
                full = None
                if owners[piece.name] == ranks.rank():
                    full, block = block[: piece.shape.numel()].view(piece.shape), block[piece.shape.numel() :]
                    share[f"{stored}/{piece.name}"] = full
                partition.gather_into(piece, tensor, full, destination=owners[piece.name])
    return share


def _stored(partition: Partition, optimizer: Optimizer) -> dict[str, Tensor]:
    """What is stored of a partition's parameters: masters, and the moments that the optimizer keeps."""
    state = optimizer.state[partition.flat]
    return {"master": partition.flat} | {moment: state[moment] for moment in MOMENTS if moment in state}


def _write(folder: Path, share: dict[str, Tensor]) -> _Written:
    """Writes and hashes one rank's share, in its thread; a disk's refusal becomes part of the answer."""
    name = f"rank-{ranks.rank():05d}.safetensors"
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(share, path)
        open_to_readers(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return _Written(name, list(share), file_entry(path))
    except (OSError, safetensors.SafetensorError) as error:
        return _Written(name, [], {}, str(error))
