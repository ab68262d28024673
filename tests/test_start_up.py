"""Commands that look at things import nothing heavy: each runs in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from start_up import PROGRAM

from earlybert.pretrain.plan.recipe import load_recipe, run_config_path
from tests.test_imports import HEAVY


def imported(folder: Path, command: str) -> tuple[int, set[str]]:
    """Exit status of `earlybert COMMAND` in a folder, and which of the heavy packages it imported."""
    words = [sys.executable, "-c", PROGRAM, *command.split()]
    finished = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    last = finished.stderr.splitlines()[-1].split()
    assert last[0] == "imported", finished.stderr
    return finished.returncode, HEAVY & set(last)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "train --help",
        "train --no-such-field 1",
        "prepare --help",
        "prepare verify CORPUS",
        "plan",
        "plan --config finished/config.yaml --data CORPUS --ticket finished/ticket.json",
        "plan --config bert_large --cluster 4x8 V100-32GB",
        "ticket show finished/ticket.json",
        "ticket compare finished/ticket.json finished/ticket.json",
        "ticket random --like finished/ticket.json --out random.json",
        "ticket draw finished --out drawn.json",
        "ticket tune --config bert_large --device v100 --tokens 8192",
        "checkpoint list finished",
        "checkpoint verify finished",
        "report --help",
        "export --help",
    ],
)
def test_nothing_heavy_is_imported(finished_run: Path, command: str) -> None:
    corpus = load_recipe(run_config_path(finished_run), []).data
    status, heavy = imported(finished_run.parent, command.replace("CORPUS", str(corpus)))
    assert (status, heavy) == (2 if "no-such" in command else 0, set())


def test_what_is_heavy_would_be_noticed(tmp_path: Path) -> None:
    """A report draws pictures and looks at the network's attention."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("plan: [phase1]\n")
    status, heavy = imported(tmp_path, "report broken")
    assert status == 2 and heavy >= {"torch", "matplotlib"}
