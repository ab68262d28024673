"""The scripts of benchmarks/, given what is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("start_up", "nowhere: is not a run directory"),
        ("data_prep", "no file matches nowhere"),
        ("data_sources", "nowhere has no mediawiki/*.xml.bz2"),
    ],
)
def test_a_path_to_nothing_is_named(script: str, message: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith(f"{script}.py: error: ") and message in last, done.stderr
    assert not [*tmp_path.iterdir()]
