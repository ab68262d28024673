"""The CUDA kernels as the product calls them, on a GPU: numbers, determinism, bandwidth. `pytest -m gpu`.

Without a GPU the same tests are rehearsed in small sizes with the emulated kernels. Errors are judged by PyTorch's own,
in the same precision and on the same device.

Shape suffixes: T rows, H columns, F neurons, P stretches.
"""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.kernels import extension
from earlybert.kernels.gelu import bias_gelu, bias_gelu_reference, linear, linear_gelu
from earlybert.kernels.lamb_step import (
    CUDA_CHUNK,
    CudaLambStep,
    LambStep,
    Rates,
    Stretch,
    Tensors,
    TorchLambStep,
    lamb_step,
)
from earlybert.kernels.layer_norm import dropout_residual_layer_norm, dropout_residual_layer_norm_reference
from tests.conftest import ROOT
from tests.kernels.test_cuda_kernels import kept_reference, no_worse

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def on_each_device(gpu: list[tuple[int, int]], cpu: list[tuple[int, int]]) -> Any:
    """Parametrises `device` and `shape`."""
    on_gpu = [pytest.param("cuda", shape, marks=pytest.mark.gpu, id=f"cuda-{shape}") for shape in gpu]
    on_cpu = [pytest.param("cpu", shape, id=f"cpu-{shape}") for shape in cpu]
    return pytest.mark.parametrize(("device", "shape"), [*on_gpu, *on_cpu])


@pytest.fixture(autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded on a GPU; emulated for tests with the parameter "cpu"."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("device") == "cpu":
        request.getfixturevalue("operators")
        monkeypatch.setattr(extension, "_usable_on", lambda device: True)
    else:
        monkeypatch.setenv("EARLYBERT_KERNELS", "require")
        assert extension.operators_for(torch.empty(1, device="cuda"))


def with_gradients(function: object, tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*inputs)  # type: ignore[operator]
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream.to(output.dtype))]


def compare(kernel: object, reference: object, tensors: list[Tensor], upstream: Tensor, limit: float) -> None:
    """Result and gradients are no worse than those of PyTorch, and have the same bits every time."""
    ours, theirs = (with_gradients(function, tensors, upstream) for function in (kernel, reference))
    exact = with_gradients(reference, [tensor.double() for tensor in tensors], upstream)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        no_worse(mine, other, truth, limit)
    for first, second in zip(ours, with_gradients(kernel, tensors, upstream), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
@on_each_device([(8192, 4096), (8192, 2816), (8192, 2880), (777, 2867), (1, 64)], [(37, 104), (23, 101)])
def test_bias_gelu_is_no_worse_than_pytorch(device: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden_TF, upstream_TF = torch.randn(2, *shape, device=device).to(dtype)
    tensors = [hidden_TF, torch.randn(shape[1], device=device).to(dtype)]
    compare(bias_gelu, bias_gelu_reference, tensors, upstream_TF, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@on_each_device([(8192, 1024), (4099, 768), (777, 100), (777, 101), (1, 64)], [(37, 104), (23, 101)])
def test_layer_norm_is_no_worse_than_pytorch(device: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden_TH, residual_TH, upstream_TH = torch.randn(3, *shape, device=device).to(dtype)
    tensors = [hidden_TH, residual_TH, *torch.randn(2, shape[1], device=device).to(dtype)]
    fused = partial(dropout_residual_layer_norm, dropout=0.0, eps=1e-12)
    reference = partial(dropout_residual_layer_norm_reference, dropout=0.0, eps=1e-12)
    compare(fused, reference, tensors, upstream_TH, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@on_each_device([(37, 104)], [(37, 104)])
def test_dropout_mask_is_philox_and_backward_draws_it_again(
    device: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(5)
    seed = int(torch.randint(2**63 - 1, ()))
    kept_TH, scale = kept_reference(*shape, 0.1, seed).to(device), 65536 / (65536 - round(0.1 * 65536))
    hidden_TH = torch.ones(shape, device=device, dtype=dtype).requires_grad_()
    residual_TH, upstream_TH = torch.randn(2, *shape, device=device).to(dtype)
    residual_TH.requires_grad_()
    weight_H, zero_H = torch.tensor([1.0, 0.0], device=device, dtype=dtype)[:, None].expand(2, shape[1]).contiguous()
    torch.manual_seed(5)
    output_TH = dropout_residual_layer_norm(hidden_TH, residual_TH, weight_H, zero_H, 0.1, 1e-12)
    hidden_gradient, residual_gradient = torch.autograd.grad(output_TH, [hidden_TH, residual_TH], upstream_TH)
    theirs = F.layer_norm(residual_TH + (kept_TH * scale).to(dtype), shape[1:], eps=1e-12)
    exact = F.layer_norm(residual_TH.double() + kept_TH * scale, shape[1:], eps=1e-12)
    no_worse(output_TH, theirs, exact, 2e-6)
    assert torch.equal(hidden_gradient != 0, kept_TH & (residual_gradient != 0))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_width_changes_nothing_and_its_columns_stay_zero(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    input_TH, weight_FH = torch.randn(300, 256, device="cuda"), torch.randn(717, 256, device="cuda") / 16
    bias_F, output_weight_HF = torch.randn(717, device="cuda"), torch.randn(256, 717, device="cuda") / 27
    tensors = [tensor.to(dtype) for tensor in (input_TH, weight_FH, bias_F, output_weight_HF)]
    assert linear_gelu(*tensors[:3]).shape == (300, 768) and not linear_gelu(*tensors[:3])[:, 717:].any()

    def padded(input_TH: Tensor, weight_FH: Tensor, bias_F: Tensor, output_weight_HF: Tensor) -> Tensor:
        return linear(linear_gelu(input_TH, weight_FH, bias_F), output_weight_HF, None)

    def reference(input_TH: Tensor, weight_FH: Tensor, bias_F: Tensor, output_weight_HF: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(input_TH, weight_FH, bias_F)), output_weight_HF)

    compare(padded, reference, tensors, torch.randn(300, 256, device="cuda"), 2e-6)


@on_each_device([(70_000, 3 * CUDA_CHUNK + 5)], [(40_000, CUDA_CHUNK + 5)])
def test_lamb_step_is_no_worse_than_pytorch(device: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    elements, longest = shape
    places = [(0, 7), (7, 1), (8, 1000), (1009, longest), (1009 + longest, 517)]
    flats = [torch.randn(elements, device=device) for _ in range(4)]
    flats[3].square_()
    rates = Rates(4.0, (0.9, 0.999), 1e-6, 0.01, bias_correction=True)
    stretches = [Stretch(0, start, numel) for start, numel in places]

    def stepped(step: LambStep, dtype: torch.dtype) -> list[Tensor]:
        own = Tensors(*([flat.to(dtype, copy=True)] for flat in flats))
        squares_2P = step.advance(own, rates)
        step.apply(torch.full((len(places),), -0.1, dtype=torch.float64, device=device))
        return [squares_2P[0], squares_2P[1], own.weights[0], own.first_moments[0], own.second_moments[0]]

    ours = lamb_step(stretches, Tensors(*([flat] for flat in flats)))
    assert isinstance(ours, CudaLambStep)
    results = [
        stepped(ours, torch.float32),
        stepped(TorchLambStep(stretches, flats[0].device), torch.float32),
        stepped(TorchLambStep(stretches, flats[0].device), torch.float64),
    ]
    for mine, other, truth in zip(*results, strict=True):
        no_worse(mine, other, truth, 5e-7)
    for first, second in zip(results[0], stepped(ours, torch.float32), strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
def test_kernels_reach_their_shares_of_the_copy_bandwidth() -> None:
    """As the benchmark says for each kernel."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), "--without", "compile", "apex", "deepspeed"]
    outcome = subprocess.run([*command, "--rounds", "5"], capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
