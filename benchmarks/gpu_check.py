"""One call that proves what there is to prove on a GPU, in at most nine minutes.

    python benchmarks/gpu_check.py [--out runs/gpu] [--data CORPUS] [--only STAGE ...]
    python benchmarks/gpu_check.py --rehearse         every stage on a CPU, in tiny sizes: no measurement

Each stage is a process of its own with a time limit; one that fails or takes too long does not stop the others. After
every stage OUT/gpu_check.json is written again, and a table comes last. CORPUS has the lengths 128 and 512; without
one and without .gpu/corpus, Python's own documentation is prepared. `make gpu-carry` collects what a machine without a
network needs. A second call, of at most seven minutes, compiles BERT-Large, transformers' and ours, and takes the
largest micro-batches. Others, of four minutes, are pieces of a race to the same loss of BERT-Base. Each leaves
OUT/race.tar.xz, a few MB. Put into .gpu/, the next piece resumes the race from there, on another machine as well, and
its table has the arms of all pieces:

    python benchmarks/gpu_check.py --only compiled "compiled, ours" "128 x 256" "512 x 32"
    python benchmarks/gpu_check.py --only race
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.runs import LENGTHS, kill_all
from gpu.table import table
from provenance import measured_on

from earlybert.core.devices import device_type
from earlybert.core.files import read_json, write_json

HERE = Path(__file__).parent
CARRIED = HERE.parent / ".gpu" / "corpus"
# A rehearsal shares its CPU with others.
PATIENCE = 900
# Characters at the end of a failed stage's output: stored, and printed at once.
TAIL, SHOWN = 3000, 800


@dataclass(frozen=True)
class Stage:
    """A command, given the file for its JSON, the corpus and whether it is rehearsed; seconds on a GPU."""

    name: str
    seconds: int
    command: Callable[[Path, Path, bool], list[str]]
    environment: dict[str, str]


def script(module: str) -> str:
    # By its path: as a module of the current folder it would find the package's kernels/ before kernels.py.
    return str(HERE / "gpu" / f"{module}.py")


def own(module: str) -> Callable[[Path, Path, bool], list[str]]:
    """A stage of benchmarks/gpu."""
    return lambda out, data, rehearse: [script(module), str(out), str(data), *["--rehearse"] * rehearse]


def tests(words: str) -> Callable[[Path, Path, bool], list[str]]:
    def command(out: Path, data: Path, rehearse: bool) -> list[str]:
        if rehearse:
            return ["-m", "pytest", "tests/pretrain/test_gpu.py", "-k", f"({words}) and not method"]
        return ["-m", "pytest", "-m", "gpu", *ON_GPUS, "-k", words, "--deselect", KERNEL_SHARES]

    return command


# Named, because other files may need packages that the machine lacks.
ON_GPUS = (
    "tests/kernels/test_cuda_gpu.py",
    "tests/kernels/test_packed_attention.py",
    "tests/pretrain/test_feeding.py",
    "tests/pretrain/test_gpu.py",
)
# The stage "kernels" is the same.
KERNEL_SHARES = "tests/kernels/test_cuda_gpu.py::test_kernels_reach_their_shares_of_the_copy_bandwidth"


def kernel_benchmark(out: Path, data: Path, rehearse: bool) -> list[str]:
    # Inductor alone may take longer over all the sizes than the stage has.
    mode = ["--rehearse", "--without", "compile"] if rehearse else ["--rounds", "5", "--without", *SLOW_TO_BUILD]
    return [str(HERE / "kernels.py"), *mode, "--out", str(out)]


def speed(length: int, sequences: int, *rows: str) -> Callable[[Path, Path, bool], list[str]]:
    """Steps of BERT-Large; rows as step_speed.py names them."""

    def command(out: Path, data: Path, rehearse: bool) -> list[str]:
        size = ["tiny", "--sequences", "4", "--rehearse", "--rounds", "1"]
        size = size if rehearse else ["large", "--sequences", str(sequences), "--rounds", "5"]
        arguments = ["--model", *size, "--length", str(length), "--data", str(data), "--threads", "1"]
        return [str(HERE / "step_speed.py"), *arguments, "--only", *rows, "--out", str(out)]

    return command


def step_profile(out: Path, data: Path, rehearse: bool) -> list[str]:
    size = ["tiny", "--rehearse"] if rehearse else ["large", "--sequences", "32"]
    return [script("step_profile"), str(out), "--model", *size, "--data", str(data)]


SLOW_TO_BUILD = ("compile", "apex", "deepspeed")
HALF_ROWS = ("ours, dense bf16", "ours, ticket bf16", "ours, searching", "fused AdamW bf16")
REQUIRED = {"EARLYBERT_KERNELS": "require"}
STAGES = (
    Stage("machine", 20, own("machine"), {}),
    Stage("kernels required", 30, own("build"), REQUIRED),
    Stage("tests", 65, tests("not fp16"), {}),
    Stage("fp16", 25, tests("fp16"), {}),
    Stage("kernels", 30, kernel_benchmark, {}),
    Stage("parity", 40, own("parity"), {}),
    Stage("128 x 32", 40, speed(128, 32, *HALF_ROWS, "no CUDA kernels"), {}),
    Stage("512 x 8", 35, speed(512, 8, *HALF_ROWS), {}),
    Stage("profile", 30, step_profile, {}),
    Stage("method", 95, own("method"), {}),
    Stage("128 x 128", 40, speed(128, 128, *HALF_ROWS), {}),
    Stage("real loop", 35, own("real_loop"), {}),
)
# What does not fit into the first call: run when named, and rehearsed.
LATER = (
    Stage("compiled", 150, speed(128, 32, "transformers, autocast, torch.compile", "ours, dense bf16"), {}),
    Stage("compiled, ours", 150, speed(128, 32, "ours, dense, torch.compile", "ours, dense bf16"), {}),
    Stage("128 x 256", 40, speed(128, 256, *HALF_ROWS), {}),
    Stage("512 x 32", 40, speed(512, 32, *HALF_ROWS), {}),
    Stage("race", 240, own("race_piece"), {}),
)


def run(stage: Stage, out: Path, data: Path, rehearse: bool) -> dict[str, Any]:
    """What came of a stage: whether it passed, its seconds, its own JSON, and the end of its output if it failed."""
    result = out / f"{stage.name.replace(' ', '-')}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, *stage.command(result, data, rehearse)]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | stage.environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1" if rehearse else "8"}
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE if rehearse else stage.seconds)
        status = f"status {process.returncode}" if process.returncode else "passed"
    except subprocess.TimeoutExpired:
        kill_all(process)
        # And those of its group that it does not call its own any more: what is left would keep the GPU busy.
        os.killpg(process.pid, signal.SIGKILL)
        output, status = process.communicate()[0], "out of time"
    found = read_json(result) if result.is_file() else None
    took = time.monotonic() - began
    return {"status": status, "seconds": took, "found": found, "output": "" if status == "passed" else output[-TAIL:]}


def corpus(given: Path | None, out: Path, rehearse: bool) -> Path:
    """The given one, else the one that was carried, else Python's documentation, prepared."""
    from earlybert.data_prep.config import CorpusConfig
    from earlybert.data_prep.prepare import prepare

    if given or (CARRIED.is_dir() and not rehearse):
        return given or CARRIED
    config = CorpusConfig(
        source="pydocs",
        max_megabytes=0.5 if rehearse else 8.0,
        vocab_size=1000 if rehearse else 8192,
        lengths=[*LENGTHS],
    )
    prepare(config, out / "corpus")
    return out / "corpus"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--data", type=Path, help="a prepared corpus of the lengths 128 and 512")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in (*STAGES, *LATER)])
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args(argv)
    if given.rehearse:
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif device_type() != "cuda":
        parser.error("there is no GPU here; --rehearse runs every stage on a CPU")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu_check.json"
    before = read_json(path) if given.only and path.is_file() else {}
    # What was rehearsed in the folder is no measurement.
    results = before["stages"] if before.get("rehearsal") == given.rehearse else {}
    data = corpus(given.data, out, given.rehearse).resolve()
    usual = (*STAGES, *LATER) if given.rehearse else STAGES
    wanted = given.only or [stage.name for stage in usual]
    for stage in (stage for stage in (*STAGES, *LATER) if stage.name in wanted):
        found = results[stage.name] = run(stage, out, data, given.rehearse)
        print(f"{stage.name}: {found['status']}, {found['seconds']:.0f} s", flush=True)
        if found["output"]:
            print(found["output"][-SHOWN:], flush=True)
        write_json(path, measured_on("deepspeed") | {"rehearsal": given.rehearse, "stages": results})
    print(table(results, measured=not given.rehearse))
    return int(any(result["status"] != "passed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
