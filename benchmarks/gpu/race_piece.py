"""Stage: a piece of the race to the same loss: whatever arms the time allows; the next piece resumes it elsewhere.

It begins with the archive of an earlier piece, OUT/race.tar.xz or .gpu/race.tar.xz, and ends with OUT/race.tar.xz.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu.runs import kill_all
from provenance import measured_on
from race.archive import pack, unpack
from race.arms import CONTROLS, REPOSITORY, SHALLOW, run_dir

from earlybert.core.files import read_json, write_json
from earlybert.pretrain.report.timeline import read_lines

# In the order in which they run: the best plans first, then the method's own arms, last what they are to be judged by.
ARMS = (
    *("dense", "best plan", "best plan, 85 % of the steps"),
    *("EarlyBERT", "random ticket", "stacking"),
    *("dense, Muon", *CONTROLS),
)
# One of each kind: a growing network, a ticket and one by chance, fewer layers.
REHEARSED = ("dense", "best plan", "EarlyBERT", "random ticket", SHALLOW)
CARRIED = REPOSITORY / ".gpu" / "race.tar.xz"
# Minutes to train, and seconds in which the steps must be timed and the archive written, too.
BUDGET, SECONDS = 2.0, 210
CHANGES = {"phase1.steps": 600, "search.steps": 40, "search.snapshot_every": 10, "validation.every": 25}
TINY = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.max_position_embeddings": 128,
    "draw.width_multiple": 16,
    "search.steps": 4,
    "search.snapshot_every": 2,
    "phase1.length": 128,
    "phase1.global_batch": 4,
    "phase1.micro_batch": 4,
    "phase1.steps": 8,
    "validation.every": 2,
    "validation.samples": 4,
    "checkpoint_every": 1,
}


def start(work_dir: Path, data: Path, tiny: bool) -> subprocess.Popen[str]:
    """The race, with what is done of it in the work folder."""
    numbers = [word for name, value in (TINY if tiny else CHANGES).items() for word in (f"--{name}", str(value))]
    limits = ["--budget", "60" if tiny else str(BUDGET), "--rounds", "1" if tiny else "5"]
    words = [str(REPOSITORY / "benchmarks" / "time_to_loss.py"), "--data", str(data), "--work-dir", str(work_dir)]
    return subprocess.Popen(
        [sys.executable, *words, "--arms", *(REHEARSED if tiny else ARMS), *limits, *numbers],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def race(work_dir: Path, data: Path, *, tiny: bool) -> str:
    """Runs a piece; returns what it printed. Raises RuntimeError where it failed or had to be ended."""
    process = start(work_dir, data, tiny)
    try:
        output, _ = process.communicate(timeout=None if tiny else SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends its arm, whose checkpoint is then written
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"status {process.returncode} of the race\n{output[-4000:]}")
    return output


def kill_in(name: str, work_dir: Path, data: Path) -> None:
    """Begins the race, and kills all of it once that arm has a checkpoint."""
    process = start(work_dir, data, tiny=True)
    checkpoints = run_dir(work_dir, name, 0) / "checkpoints"
    while process.poll() is None and not (checkpoints.is_dir() and any(checkpoints.glob("step-*"))):
        time.sleep(0.05)
    if process.poll() is None:
        kill_all(process)
    process.communicate()


def rehearse(folder: Path, data: Path, archive: Path) -> str:
    """A piece that is killed in its second arm, and the rest of the race in another folder, as on another machine."""
    first, second = folder / "race-killed", folder / "race-resumed"
    shutil.rmtree(first, ignore_errors=True)
    kill_in(REHEARSED[1], first, data)
    pack(first, data, archive)
    unpack(archive, second, data)
    output = race(second, data, tiny=True)
    pack(second, data, archive)
    began = REHEARSED[:3]
    starts = {name: sum(line["kind"] == "start" for line in read_lines(run_dir(second, name, 0))) for name in began}
    if list(starts.values()) != [1, 2, 1]:
        raise RuntimeError(f"the arm that was killed must have been started twice, the others once, but {starts}")
    return output


def main() -> None:
    out, data, tiny = Path(sys.argv[1]), Path(sys.argv[2]).resolve(), "--rehearse" in sys.argv
    archive, work_dir = out.parent / "race.tar.xz", out.parent / ("race-resumed" if tiny else "race")
    if tiny:
        printed = rehearse(out.parent, data, archive)
    else:
        before = next((path for path in (archive, CARRIED) if path.is_file()), None)
        if before is not None and not work_dir.is_dir():
            unpack(before, work_dir, data)
        try:
            printed = race(work_dir, data, tiny=False)
        finally:
            pack(work_dir, data, archive)
    wanted = REHEARSED if tiny else ARMS
    left = [name for name in wanted if not (run_dir(work_dir, name, 0) / "DONE").is_file()]
    results = work_dir / "results.json"
    found: dict[str, Any] = {"left": left, "printed": printed, "archive_bytes": archive.stat().st_size}
    table = read_json(results)["arms"] if results.is_file() else {}
    if tiny and (left or set(table) != set(wanted)):
        raise RuntimeError(f"left: {left}; in the table: {list(table)}")
    write_json(out, measured_on("deepspeed") | found | {"arms": table})


if __name__ == "__main__":
    main()
