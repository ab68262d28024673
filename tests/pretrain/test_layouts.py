"""One recipe under several launchers, ranks, ZeRO stages and micro-batches, dropout 0: the same run to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_layouts_over_100_steps(workplace: Path) -> None:
    out = workplace / "layouts.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "layouts.py"), "--config", "small.yaml", "--export", "[]"]
    command += ["--steps", "100", "--out", str(out), "--work-dir", "layouts"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    table = json.loads(out.read_text())["layouts"]
    assert len(table) == 9
    for name, row in table.items():
        assert row["search_loss_difference"] < 1e-5, (name, row)
        assert row["phase1_loss_difference"] < 1e-5, (name, row)
        assert row["coefficient_difference"] < 1e-5, (name, row)
        assert row["heads_different"] == 0, (name, row)
        assert row["neurons_unexplained"] == 0, (name, row)
