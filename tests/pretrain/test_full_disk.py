"""Curves on a disk that fills up: the run goes on, and metrics.jsonl is complete once there is room again."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.pretrain.run_files import metrics

# The kernel refuses to let files grow beyond a limit, as it refuses on a full disk.
SCRIPT = """
import resource, sys
from pathlib import Path
from earlybert.pretrain.train.telemetry import Telemetry
from earlybert.pretrain.train.trackers.tensorboard import TensorBoard

run_dir = Path(sys.argv[1])
telemetry = Telemetry(run_dir, [TensorBoard(run_dir, -1)], enabled=True, resume_after=-1, layout={})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for step in range(400):
    if step in (50, 200):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2345 if step == 50 else hard, hard))
    telemetry.scalars("train", step, {"loss": step / 7, "padding": "x" * 50})
telemetry.close()
"""


def test_a_full_disk_costs_no_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    reports = [line for line in finished.stderr.splitlines() if "curves cannot be written" in line]
    assert len(reports) == 1 and "training continues" in reports[0] and "Traceback" not in finished.stderr
    lines = metrics(tmp_path)
    assert [line["global_step"] for line in lines] == list(range(400))
    assert [line["loss"] for line in lines] == [step / 7 for step in range(400)]
