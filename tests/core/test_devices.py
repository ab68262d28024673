"""One decision which device a process computes on: DS_ACCELERATOR, else what PyTorch finds."""

import os

import pytest
import torch

from earlybert.core.devices import device_type, half_precision
from earlybert.core.errors import UserError
from earlybert.finetune.config import Settings
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.training import layout
from earlybert.kernels.newton_schulz import product_dtype
from earlybert.pretrain.cost.hardware import device_precision


@pytest.mark.parametrize(
    ("named", "gpu", "taken"),
    [(None, True, "cuda"), (None, False, "cpu"), ("cpu", True, "cpu"), ("cpu", False, "cpu"), ("cuda", True, "cuda")],
)
def test_what_is_named_comes_before_what_is_found(
    named: str | None, gpu: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR")
    if named:
        monkeypatch.setenv("DS_ACCELERATOR", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert device_type() == taken
    # What starts from here, DeepSpeed too, is told the same.
    assert os.environ["DS_ACCELERATOR"] == taken


@pytest.mark.parametrize(
    ("named", "sentence"),
    [("gpu", "DS_ACCELERATOR is 'gpu'; it must be cpu or cuda"), ("cuda", "PyTorch finds no GPU here; set it to cpu")],
)
def test_what_cannot_be_taken_is_said(named: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=sentence):
        device_type()


@pytest.mark.parametrize(
    ("device", "capability", "half", "auto"),
    [
        ("cpu", (0, 0), torch.bfloat16, "fp32"),
        ("cuda", (7, 5), torch.float16, "fp16"),
        ("cuda", (8, 0), torch.bfloat16, "bf16"),
        ("cuda", (10, 0), torch.bfloat16, "bf16"),
    ],
)
def test_half_precision_is_bf16_from_sm_80(
    device: str, capability: tuple[int, int], half: torch.dtype, auto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    place = torch.device(device)
    assert half_precision(place) == half and device_precision("auto", place) == auto
    assert product_dtype(place, torch.float32) == (torch.float32 if device == "cpu" else half)


def test_fine_tuning_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert layout(Settings().for_task(TASKS["QQP"].defaults)).device == torch.device("cpu")
