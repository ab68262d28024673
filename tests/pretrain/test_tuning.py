"""The width rule: modelled time against brute force, the choice, and `earlybert ticket tune` itself."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from earlybert.core.errors import UserError
from earlybert.pretrain.commands import ticket as ticket_command
from earlybert.pretrain.cost import hardware
from earlybert.pretrain.cost.gpus import Processor
from earlybert.pretrain.cost.widths import DEVICES, Choice, fastest, masks_by_multiple, measure, predict, price
from earlybert.pretrain.ticket.ticket import TicketRule


def test_modelled_time_counts_tiles_one_by_one() -> None:
    device = Processor(
        tflops=2e-9,
        gemm_efficiency=0.5,
        bandwidth_gb=math.inf,
        bandwidth_efficiency=1.0,
        multiprocessors=3,
        tile=(4, 8),
        stored_multiple=8,
    )
    hidden_size, tokens = 24, 10

    def product(rows: int, columns: int, inner: int) -> float:
        tiles = sum(1 for _ in range(0, rows, 4) for _ in range(0, columns, 8))
        waves = 0
        while tiles > 0:
            tiles, waves = tiles - 3, waves + 1
        return waves * 3 * (4 * 8 * 2 * inner) / 1000.0

    for width, stored in ((16, 16), (17, 24), (40, 40), (41, 48)):
        expected = 2 * product(tokens, stored, hidden_size) + 2 * product(tokens, hidden_size, stored)
        expected += 2 * (2 * tokens * hidden_size * stored) / 1000.0
        assert predict(device, hidden_size, tokens)(width) == pytest.approx(expected)


def test_model_shows_the_steps_that_the_roofline_found() -> None:
    # At 8,192 tokens all widths from 2,816 to 3,072 take six waves of 128 x 256 tiles on 132 multiprocessors, of which
    # 4,096 takes eight: only what does not come in waves differs between them.
    seconds = predict(DEVICES["h200"], 1024, 8192)
    assert seconds(3072) / seconds(2816) < 1.07 < 3072 / 2816
    assert seconds(3073) / seconds(3072) > 1.04
    # A CPU's time is the operations'.
    seconds = predict(DEVICES["cpu"], 1024, 8192)
    assert seconds(2867) / seconds(4096) == pytest.approx(2867 / 4096)


def test_masks_spend_the_same_budget() -> None:
    coefficients_LU = np.random.default_rng(0).random((6, 512), dtype=np.float32)
    masks = masks_by_multiple(coefficients_LU, TicketRule(neuron_ratio=0.3))
    assert list(masks) == [1, 8, 16, 32, 64, 128]
    for multiple, mask_LU in masks.items():
        assert not (mask_LU.sum(axis=1) % multiple).any()
        assert abs(int(mask_LU.sum()) - 2150) <= max(1, multiple / 2)


def test_the_smallest_multiple_near_the_cheapest_neuron_wins() -> None:
    def choice(multiple: int, seconds: float, neurons: int = 1000) -> Choice:
        return Choice(multiple, (neurons,), seconds, 0.0)

    assert fastest([choice(1, 1.0), choice(8, 0.9), choice(64, 0.897)]).multiple == 8
    assert fastest([choice(1, 1.0), choice(8, 0.9), choice(64, 0.89)]).multiple == 64
    # Fewer neurons in less time are no gain.
    assert fastest([choice(1, 1.0), choice(64, 0.9, neurons=900)]).multiple == 1


def test_price_adds_up_the_layers_and_says_what_moved() -> None:
    masks = {1: np.array([[True, False, True, True]]), 2: np.array([[True, True, False, False]])}
    first, second = price(masks, lambda width: width * 10.0)
    assert (first.widths, first.seconds, first.moved) == ((3,), 30.0, 0.0)
    assert (second.widths, second.seconds, second.moved) == ((2,), 20.0, 0.75)


def test_measured_time_grows_with_width() -> None:
    seconds = measure([64, 1024], 64, 64, torch.device("cpu"), torch.float32)
    assert seconds(100) > 0 and seconds(64) < seconds(1024)


def test_measured_time_of_a_gpu_is_that_of_the_stored_width() -> None:
    seconds = measure([70, 200], 16, 8, torch.device("meta"), torch.float32)
    assert seconds(70) == seconds(128) and seconds(129) == seconds(192)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("nvidia h200", "h200"),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpu_is_known_by_a_whole_word_of_its_name(
    name: str, known: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    monkeypatch.setattr(hardware, "measured_peak", lambda device, dtype: 1.0)
    sheet = DEVICES[known].tflops * 1e12 if known else 1.0
    assert hardware.peak_flops(torch.device("cuda"), torch.bfloat16) == sheet
    assert hardware.peak_flops(torch.device("cuda"), torch.float32) == 1.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    arguments = ["tune", "--config", "quickstart", "--tokens", "32"]
    if known is None:
        with pytest.raises(UserError, match="does not know this GPU, NVIDIA RTX A1000"):
            ticket_command.main(arguments)
    else:
        ticket_command.main(arguments)
        assert f"modelled for {known}" in capsys.readouterr().out


def test_command_on_a_recipe_and_on_a_run(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticket_command.main(["tune", "--config", "bert_large", "--device", "v100", "--tokens", "8192"])
    modelled = capsys.readouterr().out
    assert "modelled for v100" in modelled and "Draw with --draw.width_multiple 128" in modelled
    ticket_command.main(["tune", "--config", "quickstart", "--device", "cpu", "--draw.neuron_ratio", "0"])
    assert " 4,096 " in capsys.readouterr().out
    ticket_command.main(["tune", "--run-dir", str(finished_run), "--measure", "--tokens", "32"])
    measured = capsys.readouterr().out
    assert "measured on this cpu in float32" in measured and "Draw with --draw.width_multiple" in measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --run-dir RUN or --config"),
        (("--config", "bert_base", "--tokens", "0"), "--tokens is '0'; it must be a positive integer"),
        (("--config", "bert_base", "--device", "tpu"), "--device is 'tpu'; did you mean cpu?"),
        (("--config", "bert_base", "--device", "cpu", "--measure"), "takes no --device"),
        (("--run-dir", "nowhere"), "nowhere: is not a run directory"),
        (("nowhere",), "unexpected argument 'nowhere'"),
        (("--config", "bert_base", "--draw.width_multiple", "7"), "draw.width_multiple is 7"),
    ],
)
def test_command_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        ticket_command.main(["tune", *arguments])
    assert message in str(refused.value)
