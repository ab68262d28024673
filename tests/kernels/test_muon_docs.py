"""docs/muon.md: its example runs as it stands, on one rank and on two; its tables are those of the stored results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from earlybert.kernels.muon import Muon
from tests.conftest import BIN, ROOT, free_port, start
from tests.kernels.test_lamb_docs import BEFORE, finish

TEXT = (ROOT / "docs" / "muon.md").read_text()
PRINTED = r"loss (\d\.\d{4}), norm of the matrix (\d\.\d{4})"


def stored(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


@pytest.mark.slow
def test_example(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(BEFORE + example)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    torchrun = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    outputs = [
        finish(start([sys.executable, str(script)], tmp_path, **alone)),
        finish(start([*torchrun, str(script)], tmp_path)),
    ]
    (written,) = re.findall(PRINTED, TEXT)
    for output in outputs:
        (printed,) = re.findall(PRINTED, output)
        assert list(map(float, printed)) == pytest.approx(list(map(float, written)), abs=2e-4)


def test_options_beside_lambs_are_described() -> None:
    from earlybert.kernels.lamb import Lamb

    both = [kind([torch.nn.Parameter(torch.ones(1))], lr=0.1).defaults for kind in (Muon, Lamb)]
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set(both[0]) - set(both[1])


def test_table_of_differences_is_the_stored_one() -> None:
    found = {
        (row["dtype"], row["stage"], row["optimizer"], row["ranks"]): row["difference"]
        for row in stored("muon_parity")["differences"]
    }
    rows = re.findall(r"^(fp32|bf16)   (\d)  ((?:  ?\s*[\d.e+-]+)+)$", TEXT, re.MULTILINE)
    assert len(rows) == 8
    for dtype, stage, numbers in rows:
        expected = [
            f"{found[dtype, int(stage), optimizer, ranks]:.1e}"
            for optimizer in ("Muon", "DeepSpeed's Muon")
            for ranks in (1, 2, 4)
        ]
        assert numbers.split() == expected
        if (dtype, stage) != ("bf16", "0"):
            assert all(float(number) < 1e-6 for number in expected[:3])


def test_table_of_costs_is_the_stored_one() -> None:
    counted = stored("muon_cost")["counted"]
    for name, row in counted.items():
        shown = f"{row['flops']:>12.2e}" + "".join(f"{share:>10.3%}" for share in row["shares"].values())
        assert f"{name:<12}{shown}" in TEXT
