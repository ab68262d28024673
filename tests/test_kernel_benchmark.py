"""benchmarks/kernels.py runs where there is no GPU, says what it leaves out, and rehearses what a GPU would run."""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from earlybert.core.files import read_json
from tests.conftest import ROOT

SIZES = ["--tokens", "16", "--hidden", "32", "--widths", "40", "--parameters", "2048", "--rounds", "1"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("kernel_benchmark", ROOT / "benchmarks" / "kernels.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "COPIED_BYTES", 1024)
    yield module
    torch._dynamo.reset()


def test_reference_rows_on_a_cpu(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    assert benchmark.main([*SIZES, "--without", "compile", "--out", str(out)]) == 0
    assert "left out: cuda (needs a GPU)" in capsys.readouterr().out
    rows = read_json(out)["rows"]
    # fp32: five accesses of 16 x 40, eight of 16 x 32, seven of 2,048 parameters.
    assert [(row["implementation"], row["bytes"]) for row in rows] == [("eager", b) for b in (12800, 16384, 57344)]
    assert all(row["ms"] > 0 and row["of_copy"] > 0 for row in rows)


@pytest.mark.slow
def test_rehearsal_runs_every_implementation_that_needs_no_peer(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    assert benchmark.main(["--rehearse", "--out", str(out)]) == 0
    found = read_json(out)
    assert found["rehearsal"] and found["calls"] == 2
    # Two number formats, each with two widths of GELU and LayerNorm; then LAMB, which nobody compiles.
    assert [row["implementation"] for row in found["rows"]] == ["eager", "compile", "cuda"] * 6 + ["eager", "cuda"]


def test_what_is_not_built_in_time_is_left_out(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import subprocess, sys, time\nsubprocess.Popen(['sleep', '300'])\ntime.sleep(300)\n")
    monkeypatch.setattr(benchmark, "__file__", str(slow))
    assert benchmark.why_not_built("apex", [], limit=1) == "was not built within 1 s"
    slow.write_text("raise SystemExit('no licence')\n")
    assert benchmark.why_not_built("apex", [], limit=60) == "could not be built: no licence"
    slow.write_text("pass\n")
    assert benchmark.why_not_built("apex", [], limit=60) is None


def test_a_gpu_is_timed_by_events_while_the_calls_wait(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU made of notes."""
    notes: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            notes.append("record")

        def synchronize(self) -> None:
            notes.append("wait")

        def elapsed_time(self, other: "Event") -> float:
            return 40.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: notes.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: notes.append("held up"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: argparse.Namespace(L2_cache_size=50 * 2**20)
    )
    options = argparse.Namespace(device=torch.device("cuda"), calls=20, rehearse=False)
    runs = [lambda: notes.append("first"), lambda: notes.append("second")]
    assert benchmark.seconds_of_a_call(runs, options) == 0.002
    assert notes == ["wait", "held up", "record", *["first", "second"] * 10, "record", "wait"]
    assert [benchmark.number_of_sets(options, 2**20 * size) for size in (1, 10, 49, 200)] == [20, 10, 3, 2]


def test_a_kernel_that_misses_its_share_ends_with_status_1(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for share, status in ((0.79, 1), (0.81, 0)):
        row = {"operation": "gelu", "implementation": "cuda", "ms": 1.0, "bytes": 1e6, "of_copy": share}
        row |= {"least_of_copy": 0.8, "speed_up": 2.0}
        monkeypatch.setattr(benchmark, "measure", lambda *arguments, row=row: [row])
        assert benchmark.main([*SIZES, "--without", "compile"]) == status
        assert ("MISSED" in capsys.readouterr().out) == bool(status)
