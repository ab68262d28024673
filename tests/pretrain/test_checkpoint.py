"""Checkpoints on disk: what is damaged is named and passed over, and a run keeps to what it began with."""

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from earlybert.core.errors import UserError
from earlybert.core.files import read_json
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints, newest_intact
from earlybert.pretrain.commands.checkpoint import main as checkpoint_command
from earlybert.pretrain.commands.export import main as export_command
from earlybert.pretrain.ticket.drawing import random_ticket_like
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import ROOT, run_training
from tests.pretrain.run_files import content, losses


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


def test_state_has_the_fields_that_every_version_reads(finished_run: Path) -> None:
    """Those of the first version and what it began with; what a run counts up is what its stages say."""
    state = json.loads((list_checkpoints(finished_run / "checkpoints")[-1] / "state.json").read_text())
    where = {"stage", "stage_index", "step", "global_step", "position", "steps_before", "finished", "optimizer_step"}
    known = where | {"format", "loss_scale", "ticket_sha256", "corpus", "optimizer", "versions"}
    assert set(state) == known | {"initial_sha256", "auto_micro_batch"}
    assert state["initial_sha256"] is None and state["auto_micro_batch"] == {}
    stages = json.loads((finished_run / "plan.json").read_text())["stages"]
    *before, last = stages
    assert (state["stage"], state["stage_index"], state["finished"]) == (last["name"], len(before), True)
    assert state["steps_before"] == sum(stage["steps"] for stage in before)
    assert state["global_step"] == state["steps_before"] + last["steps"]
    assert state["position"] == (last["schedule_start"] + last["steps"]) * last["global_batch"]


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


def edit_json(path: Path, **changes: object) -> None:
    """Changes a checkpoint's JSON file, and the manifest's checksums with it, as somebody would who means to."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(path.parent)


def sign(folder: Path) -> None:
    """Makes the manifest fit whatever lies in a checkpoint."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(folder, manifest)


def seal(folder: Path, manifest: dict[str, object]) -> None:
    """Writes the manifest with the checksum that fits it."""
    manifest.pop("sha256", None)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))


def snapshot_of_disk(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}


def require_refused(workplace: Path, run_dir: Path, reason: str, *arguments: str) -> None:
    """A run that would go on from here says one sentence, exits with status 2 and changes nothing it trains from."""
    (run_dir / "DONE").unlink(missing_ok=True)
    kept = ("checkpoints/", "search/", "ticket.json", "metrics.jsonl")
    before = {name: content for name, content in snapshot_of_disk(run_dir).items() if name.startswith(kept)}
    status, output = run_training(workplace, "--run-dir", str(run_dir), *arguments)
    errors = [line for line in output.splitlines() if line.startswith("earlybert: error: ")]
    assert status == 2 and len(errors) == 1 and reason in errors[0], output
    assert "Traceback" not in output
    after = {name: content for name, content in snapshot_of_disk(run_dir).items() if name.startswith(kept)}
    assert after == before


def test_another_format_version_is_refused_not_replaced(copied_run: Path, workplace: Path) -> None:
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    edit_json(newest / "state.json", format="earlybert-checkpoint/2")
    edit_json(newest / "manifest.json", format="earlybert-checkpoint/2")
    require_refused(workplace, copied_run, "\"format\" is 'earlybert-checkpoint/2'; this version reads")


def test_a_checkpoint_of_another_model_is_refused(copied_run: Path, workplace: Path) -> None:
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    tensors = safetensors.torch.load_file(newest / "rank-00000.safetensors")
    name = "master/layers.1.attention.output.weight"
    other = tensors | {name: torch.zeros(64, 64)}
    safetensors.torch.save_file(other, newest / "rank-00000.safetensors")
    sign(newest)
    require_refused(
        workplace, copied_run, f"another model than the recipe's; {name} is (64, 64), the model's is (64, 48)"
    )
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["tensors"][name]
    edit_json(newest / "manifest.json", tensors=manifest["tensors"])
    require_refused(workplace, copied_run, f"{name}: the model has it, the checkpoint does not")


def test_a_checkpoint_of_another_ticket_plan_or_corpus_is_refused(copied_run: Path, workplace: Path) -> None:
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    honest = (newest / "state.json").read_bytes()
    for changes, reason in (
        ({"ticket_sha256": "0" * 64}, "was trained from another ticket than"),
        ({"stage_index": 1}, "is of stage 1, phase2, which the run's plan does not have"),
        ({"stage_index": 7}, "is of stage 7, phase2, which the run's plan does not have"),
        ({"corpus": "0" * 64}, "is not the corpus that"),
    ):
        edit_json(newest / "state.json", **changes)
        require_refused(workplace, copied_run, reason)
        (newest / "state.json").write_bytes(honest)


def test_all_checkpoints_of_another_machine_are_named_once(copied_run: Path) -> None:
    """A state without a field that the run needs is damage like any other."""
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    del state["position"]
    (newest / "state.json").write_text(json.dumps(state))
    sign(newest)
    heard: list[str] = []
    found = newest_intact(copied_run / "checkpoints", heard.append)
    assert found is not None and found.path < newest
    assert heard == [f"skipping a damaged checkpoint: {newest / 'state.json'}: has no 'position'"]


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("form", ["pickle", "torch", "zip"])
def test_nothing_is_unpickled(copied_run: Path, tmp_path: Path, form: str) -> None:
    """A checkpoint from somebody who means harm, every checksum right."""
    target = tmp_path / "exploded"
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    shard = newest / "rank-00000.safetensors"
    if form == "pickle":
        shard.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save({"master": Bomb(target)}, shard, _use_new_zipfile_serialization=form == "zip")
    if form == "pickle":
        pickle.loads(shard.read_bytes())
        assert target.exists(), "the bomb is one"
        target.unlink()
    sign(newest)
    checkpoint = newest_intact(copied_run / "checkpoints", pytest.fail)
    assert checkpoint is not None and checkpoint.path == newest
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        checkpoint.require_parameters({name: torch.Size([1]) for name in checkpoint.weights})
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        dict(checkpoint.weights)
    assert not target.exists()


def test_manifest_cannot_point_out_of_its_folder(copied_run: Path) -> None:
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    outside = dict.fromkeys(manifest["tensors"], "../../ticket.json")
    edit_json(newest / "manifest.json", tensors=outside)
    with pytest.raises(UserError, match=r"names the file '../../ticket.json', which is not in it"):
        Checkpoint(newest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": None}, "lacks a table of files"),
        ({"files": {"rank-00000.safetensors": []}}, "lacks a table of files"),
        ({"tensors": {"master/bias": 3}}, "names the file 3"),
        ({"tensors": {"master/bias": "rank-00007.safetensors"}}, "names the file 'rank-00007.safetensors'"),
        ({"files": {}}, "names the file 'rank-00000.safetensors'"),
    ],
    ids=str,
)
def test_manifest_that_describes_no_checkpoint_is_damage(
    copied_run: Path, changes: dict[str, object], words: str
) -> None:
    """Its own checksum is right: somebody made it so."""
    newest = list_checkpoints(copied_run / "checkpoints")[-1]
    seal(newest, json.loads((newest / "manifest.json").read_text()) | changes)
    heard: list[str] = []
    found = newest_intact(copied_run / "checkpoints", heard.append)
    assert found is not None and found.path < newest
    assert len(heard) == 1 and words in heard[0]


def test_source_has_no_way_to_unpickle() -> None:
    """What the two tests above try, by reading: no loader that runs code is even mentioned."""
    forbidden = re.compile(
        r"\b(c?pickle|dill|joblib|shelve|marshal)\b|torch\.load\(|allow_pickle|yaml\.(load|unsafe_load|full_load)\("
        r"|(?<!\.)\b(eval|exec)\("
    )
    sources = [path for folder in ("pretrain", "kernels", "data_prep") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 40
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert not found


def test_a_write_that_fails_is_reported_once_and_the_next_one_works(finished_run: Path, workplace: Path) -> None:
    """Checkpoints are due at steps 7, 14, 20, ...; a file stands where the second is to be written."""
    run_dir = workplace / "refused"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / ".step-00000014.tmp").touch()
    arguments = ("--config", "small.yaml", "--run-dir", "refused", "--plan", "[search]", "--keep_checkpoints", "9")
    status, output = run_training(workplace, *arguments)
    assert status == 0, output
    reports = [line for line in output.splitlines() if "could not be written" in line]
    assert len(reports) == 1, output
    assert "a checkpoint could not be written (rank 0: [Errno 17] File exists" in reports[0]
    assert "training continues; the next is at its usual step" in reports[0]
    kept = [Checkpoint(path) for path in list_checkpoints(run_dir / "checkpoints")]
    assert [checkpoint.state.global_step for checkpoint in kept] == [7, 20]
    for checkpoint in kept:
        checkpoint.verify()


def test_a_last_checkpoint_that_cannot_be_written_stops_the_run(finished_run: Path, workplace: Path) -> None:
    """The ticket would be drawn from what is not on disk. With room again the run goes on and loses nothing."""
    run_dir = workplace / "last-refused"
    (run_dir / "checkpoints").mkdir(parents=True)
    obstacle = run_dir / "checkpoints" / ".step-00000020.tmp"
    obstacle.touch()
    arguments = ("--config", "small.yaml", "--run-dir", "last-refused", "--plan", "[search]")
    status, output = run_training(workplace, *arguments)
    assert status == 2, output
    assert "the checkpoint at step 20 of search could not be written" in output and "Traceback" not in output
    obstacle.unlink()
    status, output = run_training(workplace, *arguments)
    assert status == 0, output
    assert (run_dir / "ticket.json").is_file()
    assert losses(run_dir) == losses(finished_run)[:20]


def test_new_checkpoints_replace_damaged_newer_ones(finished_run: Path, workplace: Path) -> None:
    """All three damaged: told to begin again the run does, and keeps what it writes."""
    run_dir = Path(shutil.copytree(finished_run, workplace / "all-damaged"))
    (run_dir / "DONE").unlink()
    for path in list_checkpoints(run_dir / "checkpoints"):
        flip_byte(path / "rank-00000.safetensors", 5000)
    drawn = Ticket.load(run_dir / "ticket.json")
    random_ticket_like(drawn, 1).save(run_dir / "ticket.json")
    (run_dir / "environment.json").write_text("[{")
    manifest, recording = run_dir / "corpus" / "manifest.json", run_dir / "search" / "step-000999.safetensors"
    before = manifest.read_bytes()
    manifest.write_text("{}")
    recording.touch()
    status, output = run_training(workplace, "--run-dir", "all-damaged", "--begin-again")
    assert status == 0, output
    assert Ticket.load(run_dir / "ticket.json").sha256 == drawn.sha256, "the search has drawn its own again"
    assert len(read_json(run_dir / "environment.json")) == 1
    assert manifest.read_bytes() == before and not recording.exists()
    assert output.count("skipping a damaged checkpoint") == 3
    assert (run_dir / "metrics.jsonl").read_text().count('"train"') == 50
    kept = [Checkpoint(path) for path in list_checkpoints(run_dir / "checkpoints")]
    assert len(kept) == 3 and kept[-1].state.global_step == 50
    for checkpoint in kept:
        checkpoint.verify()


def test_a_run_keeps_its_optimizer(finished_run: Path, workplace: Path) -> None:
    run_dir = Path(shutil.copytree(finished_run, workplace / "keeps"))
    (run_dir / "DONE").unlink()
    before = content(run_dir)
    status, output = run_training(
        workplace, "--run-dir", "keeps", "--deepspeed", str(ROOT / "ds_configs" / "adamw.json")
    )
    assert status == 2
    assert "a run keeps its optimizer" in output and "Traceback" not in output
    assert content(run_dir) == before, "the command that is right goes on from here"


def test_export_never_overwrites(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder than the run's, into a new folder; a second time is refused and changes nothing."""
    monkeypatch.chdir(tmp_path)
    export_command([str(finished_run), "--format", "bert", "--out", "model"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert "config.json" in before and "tokenizer.json" in before
    with pytest.raises(UserError, match="exists already"):
        export_command([str(finished_run), "--format", "bert", "--out", "model"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
