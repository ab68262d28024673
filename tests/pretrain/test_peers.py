"""LAMB of apex and DeepSpeed by name. Neither runs without a GPU: stand-ins count their steps as the real ones do."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from earlybert.core.errors import UserError
from earlybert.kernels import extension
from earlybert.kernels.partition import set_step_count, step_count, zero_moments
from earlybert.pretrain.plan.recipe import OptimizerConfig
from earlybert.pretrain.train.engine import build_optimizer
from earlybert.pretrain.train.peers import PEERS, check_implementations


class ApexFusedLamb(torch.optim.Optimizer):
    """Counts in its groups, and knows no counts in its states."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_grad_norm, self.counts = max_grad_norm, []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            self.counts.append(group["step"])
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] |= {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}


class DeepSpeedFusedLamb(torch.optim.Optimizer):
    """Counts in its states, in plain integers."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.counts: list[int] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(parameter)}
                assert isinstance(state["step"], int)
                state["step"] += 1
            self.counts.append(state["step"])


@pytest.fixture(params=[("apex.FusedLAMB", ApexFusedLamb), ("deepspeed.FusedLamb", DeepSpeedFusedLamb)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a peer that a stand-in is installed for."""
    name, stand_in = request.param
    module = types.ModuleType(PEERS[name][0])
    setattr(module, PEERS[name][1], stand_in)
    monkeypatch.setitem(sys.modules, module.__name__.partition(".")[0], types.ModuleType("package"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return name


def test_gets_our_groups_and_numbers_and_leaves_clipping_to_deepspeed(kind: str) -> None:
    numbers = OptimizerConfig(betas=[0.8, 0.95], eps=1e-5, weight_decay=0.2)
    optimizer = build_optimizer(nn.Linear(3, 2), kind, {"eps": 1e-4}, numbers)
    decayed, others = optimizer.param_groups
    assert [list(parameter.shape) for group in (decayed, others) for parameter in group["params"]] == [[2, 3], [2]]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert (decayed["betas"], decayed["eps"], decayed["lr"]) == ((0.8, 0.95), 1e-4, 0.0)
    assert getattr(optimizer, "max_grad_norm", float("inf")) == float("inf")


def test_counts_on_where_a_checkpoint_ended(kind: str) -> None:
    optimizer = build_optimizer(nn.Linear(3, 2), kind, {}, OptimizerConfig())
    optimizer.step()  # as DeepSpeed's wrapper does before there are states
    assert step_count(optimizer) == 1
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = zero_moments(parameter)
    set_step_count(optimizer, 4)
    optimizer.counts.clear()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.step()
    assert optimizer.counts == [5, 5, 6, 6]  # type: ignore[attr-defined]
    assert step_count(optimizer) == 6
    set_step_count(optimizer, 0)
    assert step_count(optimizer) == 0


@pytest.mark.parametrize(("kind", "reason"), [("apex.FusedLAMB", "apex"), ("deepspeed.FusedLamb", "CPU backend")])
def test_what_is_not_there_is_refused(kind: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(UserError, match=rf'^optimizer\.type is "{kind}", which does not work here \([^\n]*{reason}'):
        build_optimizer(nn.Linear(3, 2), kind, {}, OptimizerConfig())


def test_needs_a_gpu(kind: str) -> None:
    check_implementations("Lamb", torch.device("cpu"))
    check_implementations(kind, torch.device("cuda"))
    with pytest.raises(UserError, match=f'"{kind}", which needs a GPU; on a CPU it must be "Lamb" or "AdamW"'):
        check_implementations(kind, torch.device("cpu"))


@pytest.mark.parametrize(
    ("variable", "value", "installed", "expected"),
    [
        ("EARLYBERT_KERNELS", "triton", False, "'triton'; it must be one of cuda, torch, apex"),
        ("EARLYBERT_KERNELS", "apex", False, "'apex', which is not installed; it must be cuda or torch"),
        ("EARLYBERT_KERNELS", "apex", True, ""),
        ("EARLYBERT_ATTENTION", "fast", False, "'fast'; it must be one of blocks, flash"),
    ],
)
def test_names_in_the_environment(
    variable: str, value: str, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "_has_apex", lambda: installed)
    monkeypatch.setenv(variable, value)
    check: Callable[[], None] = lambda: check_implementations("Lamb", torch.device("cpu"))  # noqa: E731
    if not expected:
        check()
        return
    with pytest.raises(UserError, match=f"{variable} is {expected}"):
        check()
