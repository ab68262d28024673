"""Checkpoints on disk: what is damaged is named and passed over, and a run keeps to what it began with."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from earlybert.pretrain.checkpoint import Checkpoint, list_checkpoints, newest_intact
from earlybert.pretrain.checkpoint_command import main as checkpoint_command
from earlybert.pretrain.errors import UserError
from earlybert.pretrain.export import main as export_command
from tests.conftest import ROOT, run_training


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_tensors_are_whole_and_plain(finished_run: Path) -> None:
    """The file is readable without this package, and holds master and both moments of every parameter."""
    path = list_checkpoints(finished_run / "checkpoints")[-1]
    tensors = safetensors.torch.load_file(path / "rank-00000.safetensors")
    names = {name.split("/", 1)[1] for name in tensors}
    assert set(tensors) == {f"{kind}/{name}" for kind in ("master", "exp_avg", "exp_avg_sq") for name in names}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all((tensor >= 0).all() for name, tensor in tensors.items() if name.startswith("exp_avg_sq/"))
    assert not any("coefficients" in name for name in names)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "tensor name", "state"])
def test_a_damaged_checkpoint_is_named_and_passed_over(copied_run: Path, damage: str) -> None:
    *_, before, newest = list_checkpoints(copied_run / "checkpoints")
    shard = newest / "rank-00000.safetensors"
    if damage == "flip":
        flip_byte(shard, shard.stat().st_size // 2)
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "remove":
        shard.unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text((newest / "manifest.json").read_text().replace('"tensors"', '"tensorr"'))
    elif damage == "tensor name":
        (newest / "manifest.json").write_text((newest / "manifest.json").read_text().replace("qkv.bias", "qkv.biaz"))
    else:
        (newest / "state.json").write_text((newest / "state.json").read_text().replace('"position"', '"positiom"'))
    heard: list[str] = []
    found = newest_intact(copied_run / "checkpoints", heard.append)
    assert found is not None and found.path == before
    assert len(heard) == 1 and newest.name in heard[0]
    with pytest.raises(SystemExit) as stopped:
        checkpoint_command(["verify", str(copied_run)])
    assert stopped.value.code == 2


def test_another_format_version_is_refused(copied_run: Path) -> None:
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    content = json.loads((newest / "manifest.json").read_text()) | {"format": "earlybert-checkpoint/2"}
    (newest / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="earlybert-checkpoint/2"):
        Checkpoint(newest)


def test_new_checkpoints_replace_damaged_newer_ones(finished_run: Path, workplace: Path) -> None:
    """All three damaged: the run starts again, and keeps what it writes."""
    run_dir = Path(shutil.copytree(finished_run, workplace / "all-damaged"))
    (run_dir / "DONE").unlink()
    for path in list_checkpoints(run_dir / "checkpoints"):
        flip_byte(path / "rank-00000.safetensors", 5000)
    status, output = run_training(workplace, "--run-dir", "all-damaged")
    assert status == 0, output
    assert output.count("skipping a damaged checkpoint") == 3
    assert (run_dir / "metrics.jsonl").read_text().count('"train"') == 50
    kept = [Checkpoint(path) for path in list_checkpoints(run_dir / "checkpoints")]
    assert len(kept) == 3 and kept[-1].state["global_step"] == 50
    for checkpoint in kept:
        checkpoint.verify()


def test_a_run_keeps_its_optimizer(finished_run: Path, workplace: Path) -> None:
    run_dir = Path(shutil.copytree(finished_run, workplace / "keeps"))
    (run_dir / "DONE").unlink()
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    status, output = run_training(
        workplace, "--run-dir", "keeps", "--deepspeed", str(ROOT / "ds_configs" / "adamw.json")
    )
    assert status == 2
    assert "a run keeps its optimizer" in output and "Traceback" not in output
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before


def test_export_never_overwrites(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder than the run's, into a new folder; a second time is refused and changes nothing."""
    monkeypatch.chdir(tmp_path)
    export_command([str(finished_run), "--format", "bert", "--out", "model"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert "config.json" in before and "tokenizer.json" in before
    with pytest.raises(UserError, match="exists already"):
        export_command([str(finished_run), "--format", "bert", "--out", "model"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
