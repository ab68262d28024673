"""Runs that have lost something: their checkpoints (nothing is thrown away), or their corpus (nothing is wrong)."""

import json
import shutil
from pathlib import Path

import pytest

from earlybert.core import cli
from earlybert.core.errors import UserError
from earlybert.pretrain.checkpoint.checkpoint import NEWEST, newest_intact, signs_of_progress
from tests.conftest import run_training
from tests.pretrain.run_files import content


@pytest.fixture
def interrupted(finished_run: Path, tmp_path: Path) -> Path:
    """A run whose last stage is not finished: its newest checkpoints are in the middle of it."""
    run = tmp_path / "interrupted"
    shutil.copytree(finished_run, run)
    (run / "DONE").unlink()
    return run


def lose(run: Path, how: str) -> None:
    """Takes a run's checkpoints away, one way or another."""
    checkpoints = run / "checkpoints"
    if how == "absent":
        shutil.rmtree(checkpoints)
    elif how == "empty":
        shutil.rmtree(checkpoints)
        checkpoints.mkdir()
    elif how == "dangling":
        shutil.rmtree(checkpoints)
        checkpoints.symlink_to(run / "a disk that is not mounted")
    for path in checkpoints.glob("step-*") if how not in ("absent", "empty", "dangling") else ():
        shard = path / "rank-00000.safetensors"
        if how == "truncated":
            shard.write_bytes(shard.read_bytes()[:100])
        elif how == "no manifest":
            (path / "manifest.json").unlink()
        elif how == "links":
            shard.unlink()
            shard.symlink_to(run / "a disk that is not mounted")
        elif how == "linked":
            shutil.rmtree(path)
            path.symlink_to(run / "a disk that is not mounted")


WAYS = ["absent", "empty", "dangling", "truncated", "no manifest", "links", "linked"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("old", [False, True])
def test_a_run_whose_checkpoints_are_lost_is_no_new_run(how: str, old: bool, interrupted: Path) -> None:
    """`old`: one of a version that did not write down its newest checkpoint."""
    assert signs_of_progress(interrupted, checkpoint_every=7)
    if old:
        (interrupted / NEWEST).unlink()
    lose(interrupted, how)
    if how in ("links", "linked"):
        with pytest.raises(UserError, match=r"is a link to .*, which is not there"):
            newest_intact(interrupted / "checkpoints", print)
    else:
        assert newest_intact(interrupted / "checkpoints", print) is None
        assert signs_of_progress(interrupted, checkpoint_every=7)


@pytest.mark.parametrize("how", ["absent", "truncated", "links"])
def test_nothing_of_it_is_touched(how: str, interrupted: Path, workplace: Path) -> None:
    lose(interrupted, how)
    before = content(interrupted)
    status, output = run_training(workplace, "--run-dir", str(interrupted))
    assert status == 2 and "Traceback" not in output, output
    assert content(interrupted) == before
    if how == "truncated":
        status, output = run_training(workplace, "--run-dir", str(interrupted), "--begin-again", "--plan", "[phase1]")
        assert status == 2 and "plan is" in output, "it is the same run as ever"


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / NEWEST).write_text('{"global_step": 0}')
    shutil.copy(finished_run / "metrics.jsonl", tmp_path)
    assert signs_of_progress(tmp_path, checkpoint_every=1) is None
    (tmp_path / NEWEST).unlink()
    reached = max(json.loads(line)["global_step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert signs_of_progress(tmp_path, checkpoint_every=reached + 1) is None
    assert "metrics.jsonl" in str(signs_of_progress(tmp_path, checkpoint_every=reached))


def test_a_finished_run_needs_its_corpus_no_more(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / finished_run.name
    shutil.copytree(finished_run, run)
    config = (run / "config.yaml").read_text()
    (stated,) = [line for line in config.splitlines() if line.startswith("data: ")]
    (run / "config.yaml").write_text(config.replace(stated, f"data: {tmp_path / 'gone'}"))
    cli.main(["export", str(run), "--format", "bert", "--out", str(tmp_path / "bert")])
    assert content(tmp_path / "bert") == content(run / "export" / "bert")
    cli.main(["report", str(run), "--out", str(tmp_path / "report")])
    report, before = (json.loads((path / "report.json").read_text()) for path in (tmp_path / "report", run))
    assert report["attention"] is None and before["attention"] is not None
    assert report["unigram_cross_entropy"] == before["unigram_cross_entropy"] > 0
    assert "leaves out where attention goes" in capsys.readouterr().err
