"""docs/lamb.md: what it shows runs as it stands, on any number of ranks; and the benchmark behind its table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import BIN, ROOT, free_port, start

TEXT = (ROOT / "docs" / "lamb.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# For inference only, and it would be compiled for a minute.
BEFORE = 'import deepspeed\n\ndeepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False\n'
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
AFTER = """
import sys

assert steps == optimizer.step_count == 10
if engine.global_rank == 0:
    torch.save(whole, sys.argv[1])
"""


def printed_ratios(text: str) -> dict[str, float]:
    return {name: float(ratio) for name, ratio in re.findall(r"^(\S+) +trust ratio (\S+)$", text, re.MULTILINE)}


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_example(tmp_path: Path) -> None:
    """All its Python as one script, on one rank and on two."""
    example, _, saving = PYTHON.findall(TEXT)
    script, outs = tmp_path / "example.py", [tmp_path / "one.pt", tmp_path / "two.pt"]
    script.write_text(BEFORE + example + saving + AFTER)
    torchrun = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    processes = [
        start([sys.executable, str(script), str(outs[0])], tmp_path, **ALONE, MASTER_PORT=free_port()),
        start([*torchrun, str(script), str(outs[1])], tmp_path),
    ]
    ratios = [printed_ratios(finish(process)) for process in processes]
    assert list(ratios[0]) == ["0.weight", "2.weight", "4.weight"]
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-5)
    assert ratios[0] == pytest.approx(printed_ratios(TEXT), rel=1e-3)
    one, two = (torch.load(out) for out in outs)
    assert one.keys() == two.keys() and largest_difference(one, two) < 2e-6


def test_example_with_the_trainer(tmp_path: Path) -> None:
    """It prints the losses that the page says, which are those of the Trainer without DeepSpeed."""
    _, example, _ = PYTHON.findall(TEXT)
    plain = example.replace("deepspeed=config, ", "").replace(", callbacks=[BindLamb()]", "")
    assert plain.count("deepspeed") == 0 and plain.count("BindLamb") == 1
    expected = re.search(r"it prints `(\[.*?\])`, under ZeRO-0", TEXT)
    assert expected is not None
    scripts = {"plain": plain, "ZeRO-0": example.replace('"stage": 1', '"stage": 0'), "ZeRO-1": example}
    for name, script in scripts.items():
        (tmp_path / f"{name}.py").write_text(BEFORE + script if name != "plain" else script)
        alone = {} if name == "plain" else ALONE | {"MASTER_PORT": free_port()}
        output = finish(start([sys.executable, f"{name}.py"], tmp_path, **alone))
        assert output.strip().splitlines()[-1] == expected[1], name


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_every_option_is_described() -> None:
    from earlybert.kernels.lamb import Lamb

    options = set(Lamb([torch.nn.Parameter(torch.ones(1))], lr=0.1).defaults) | {"row_blocks"}
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == options


@pytest.mark.slow
def test_benchmark(tmp_path: Path) -> None:
    """Three steps on two ranks: ours is the reference to rounding, the naive one is not."""
    command = [sys.executable, "benchmarks/lamb_parity.py", "--ranks", "2", "--steps", "3"]
    output = finish(start([*command, "--out", str(tmp_path / "parity.json")], ROOT))
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["steps"] == 3 and content["versions"].keys() == {"earlybert", "torch", "deepspeed"}
    assert len(content["differences"]) == 4 * 2 * 3
    for row in content["differences"]:
        shown = "diverged" if row["difference"] is None else f"{row['difference']:.1e}"
        assert shown in output
        bf16_sums = row["dtype"] == "bf16" and row["stage"] == 0
        if row["optimizer"] == "naive LAMB" and row["stage"]:
            assert row["difference"] is None or row["difference"] > 1e-3, row
        elif not bf16_sums:
            assert row["difference"] < 2e-6, row
