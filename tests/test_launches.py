"""What a GPU is asked to do, counted without one: nothing waits for it, and nobody adds launches unseen."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from earlybert.core.files import read_json
from tests.conftest import ROOT

STORED = read_json(ROOT / "benchmarks" / "results" / "launches.json")["counts"]
# Those that may read numbers: whether the gradient is finite decides about the update, and the loss is logged.
ONCE_A_STEP = "step, beside all these", "step, fp16, beside all these"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("launches", ROOT / "benchmarks" / "launches.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_counter_sees_launches_and_waits(benchmark: ModuleType) -> None:
    on_device = torch.ones(3, 4, device="meta")

    def run() -> None:
        sums = on_device.t().sum(0)  # a view and a launch
        torch.empty_like(sums).copy_(torch.ones(3), non_blocking=True)  # a launch
        sums.max().item()  # a launch, and a wait
        sums.tolist()  # a wait
        torch.ones(5).to("meta")  # a wait
        torch.ones(5).to("meta", non_blocking=True)  # a launch
        torch.ones(5).sum().item()  # the host's own

    assert benchmark.counted(run) == {"operations": 7, "waits": 3}


@pytest.mark.parametrize("name", STORED)
def test_nothing_waits_and_no_launch_is_added(benchmark: ModuleType, name: str) -> None:
    found = benchmark.CASES[name]()
    assert found["waits"] <= STORED[name]["waits"]
    assert found["operations"] <= STORED[name]["operations"]
    assert name in ONCE_A_STEP or not found["waits"]
