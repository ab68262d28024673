"""The arms of a domain's benchmark: what is read of them, which are trained in which order, what a call writes."""

import json
import signal
import sys
from pathlib import Path

import domain
import pytest

from earlybert.core.files import write_json
from earlybert.pretrain.plan.recipe import load_recipe, recipe_path


def write_metrics(folder: Path) -> None:
    """Three steps of a second, two and four; a validation after the second and the third."""
    lines = [{"kind": "start", "time": 0.0, "global_step": 0, "ranks": 1, "device": "CPU"}]
    for step, (stage, seconds) in enumerate([("search", 1.0), ("phase1", 2.0), ("phase1", 4.0)], start=1):
        place = {"time": 0.0, "global_step": step, "stage": stage, "step": step, "loss": 5.0}
        lines.append({"kind": "train", **place, "seconds": seconds, "tokens_per_second": 10.0})
        if step > 1:
            scores = {"masked_loss": 6.0 - step, "masked_accuracy": 0.25}
            lines.append({"kind": "validation", **place, **scores})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_arm_is_told_of_in_steps_seconds_and_tokens(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run")
    assert domain.outcome(tmp_path / "run") == {
        "steps": 3,
        "seconds": 7.0,
        "tokens": 70,
        "tokens_of_search": 10,
        "masked_loss": 3.0,
        "masked_accuracy": 0.25,
        "curve": [(2, 3.0, 4.0), (3, 7.0, 3.0)],
    }


def call(folder: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """Which arms a call trains, and which it writes, each in its order."""
    trained = []

    def train(out: Path, *_: str) -> None:
        trained.append(out.name)
        if not out.exists():
            write_metrics(out)
        (out / "DONE").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "inverse", lambda name: {"exported": 0.0, "narrow_export": 0.0})
        patch.setattr(domain, "arguments_of", lambda *_: [])
        patch.setattr(domain, "train", train)
        patch.setattr(signal, "signal", lambda *_: None)
        places = ["--work-dir", str(folder / "work"), "--out", str(folder / "out.json")]
        patch.setattr(sys, "argv", ["domain.py", "model", "--data", "corpus", *places, *arguments])
        domain.main()
    return trained, list(json.loads((folder / "out.json").read_text())["arms"])


def test_an_arm_has_those_that_it_needs_and_the_done_ones_are_written_too(tmp_path: Path) -> None:
    first = ["dense", "searched-ticket", "random-ticket-2"]
    assert call(tmp_path, "--arms", "random ticket 2") == (first, ["dense", "searched ticket", "random ticket 2"])
    trained, written = call(tmp_path, "--arms", "from scratch")
    assert trained == ["dense", "from-scratch"]  # the first says whether the folder is of this model and these fields
    assert written == ["dense", "searched ticket", "random ticket 2", "from scratch"]
    trained, written = call(tmp_path)
    assert trained == ["dense", "shortened", "random-ticket-1", "random-ticket-3"] and len(written) == 7


def test_shortened_has_the_operations_of_the_searched_ticket(tmp_path: Path) -> None:
    load_recipe(recipe_path("domain_base"), []).save(tmp_path / "config.yaml")
    write_json(tmp_path / "plan.json", {"stages": [{"steps": 100, "flops_per_step": 8.0}]})
    search, phase = {"steps": 10, "flops_per_step": 8.0}, {"steps": 90, "flops_per_step": 6.0}
    write_json(tmp_path / "searched" / "plan.json", {"stages": [search, phase]})
    arguments = domain.arguments_of("shortened", tmp_path, tmp_path / "searched")
    assert arguments == ["--config", str(tmp_path / "config.yaml"), "--phase1.steps", "78"]  # (80 + 540) / 8 is 77.5


def test_a_model_that_there_is_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "bert").mkdir()
    monkeypatch.setattr(sys, "argv", ["domain.py", str(tmp_path / "bert"), "--data", "corpus"])
    with pytest.raises(SystemExit) as ended:
        domain.main()
    assert ended.value.code == 2 and "bert: has neither config.yaml" in capsys.readouterr().err


def test_an_arm_that_there_is_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, "--arms", "dense", "random ticket 4")
    assert ended.value.code == 2 and not (tmp_path / "work").exists()
    assert "--arms has 'random ticket 4'; with --tickets 3 there are dense, " in capsys.readouterr().err
