"""Stage: the whole method by `deepspeed`, stopped in the search and killed in phase 1; undisturbed by `torchrun`."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from gpu.runs import BIN, command, finish, recipe
from soak.comparison import different_bits
from transformers import BertForPreTraining

from earlybert.core.files import write_json
from earlybert.pretrain.report.timeline import read_lines


def launcher(name: str, count: str) -> tuple[str, ...]:
    """A port of its own for each launch."""
    port = str(20000 + (os.getpid() * 7 + time.monotonic_ns() // 1000) % 20000)
    return str(BIN / name), count, "1", "--master_port", port


def interrupt(line: list[str], run_dir: Path, step: int, number: signal.Signals) -> None:
    """Sends the signal to the rank, once a step is logged."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and logged(run_dir) < step:
        time.sleep(0.02)
    if process.poll() is None:
        ranks = [one for one in psutil.Process(process.pid).children(recursive=True) if "RANK" in one.environ()]
        # Behind it stand only processes that it has started.
        ranks[0].send_signal(number)
    process.wait()


def logged(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return 0
    return max((line["global_step"] for line in read_lines(run_dir) if line["kind"] == "train"), default=0)


def main() -> None:
    out, data, rehearse = Path(sys.argv[1]), Path(sys.argv[2]), "--rehearse" in sys.argv
    steps = 6 if rehearse else 20
    content = recipe(steps, tiny=rehearse) | {"deterministic": True}
    with tempfile.TemporaryDirectory() as folder:
        disturbed, undisturbed = Path(folder) / "disturbed", Path(folder) / "undisturbed"
        began = time.perf_counter()
        for step, number in ((steps // 2, signal.SIGTERM), (steps + steps // 2, signal.SIGKILL)):
            line = command(disturbed, data, content, launcher=launcher("deepspeed", "--num_accelerators"))
            interrupt(line, disturbed, step, number)
        finish(command(disturbed, data, content, launcher=launcher("deepspeed", "--num_accelerators")))
        finish(command(undisturbed, data, content, launcher=launcher("torchrun", "--nproc_per_node")))
        differences = different_bits(undisturbed, disturbed)
        model = BertForPreTraining.from_pretrained(disturbed / "export" / "bert")
        finite = bool(torch.isfinite(model(torch.tensor([[2, 7, 8, 3]])).prediction_logits).all())
        found = {"differences": differences, "export_loads": finite, "seconds": time.perf_counter() - began}
    found["passed"] = not differences and finite
    write_json(out, found)
    sys.exit(0 if found["passed"] else f"method: {differences or 'the export gives numbers that are not finite'}")


if __name__ == "__main__":
    main()
