"""benchmarks/kernels.py runs where there is no GPU, and says what it leaves out."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_reference_rows_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("kernel_benchmark", ROOT / "benchmarks" / "kernels.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "COPIED_BYTES", 1024)
    sizes = ["--tokens", "16", "--hidden", "32", "--widths", "40", "--parameters", "2048", "--rounds", "1"]
    benchmark.main(["--device", "cpu", *sizes, "--without", "compile", "--out", str(tmp_path / "rows.json")])
    assert "left out: cuda (needs a GPU)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    # fp32: five accesses of 16 x 40, eight of 16 x 32, seven of 2,048 parameters.
    assert [(row["implementation"], row["bytes"]) for row in rows] == [("eager", b) for b in (12800, 16384, 57344)]
    assert all(row["ms"] > 0 and row["of_copy"] > 0 for row in rows)
