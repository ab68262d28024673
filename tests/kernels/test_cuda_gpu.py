"""The CUDA kernels on a GPU: numbers, determinism, bandwidth. `pytest -m gpu`; nothing here runs without one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.kernels import extension
from earlybert.kernels.gelu import bias_gelu, bias_gelu_reference, linear, linear_gelu
from earlybert.kernels.lamb_step import CUDA_CHUNK, CudaLambStep, Rates, Stretch, Tensors, lamb_step
from earlybert.kernels.layer_norm import dropout_residual_layer_norm, dropout_residual_layer_norm_reference
from tests.kernels.test_cuda_kernels import kept_reference, no_worse

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LARGE = (8192, 4096)
# Of the copy bandwidth, on tensors far larger than the caches.
LEAST_BANDWIDTH = 0.8


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    assert extension.operators_for(torch.empty(1, device="cuda")), "the extension did not load; see the log"


def with_gradients(function: object, tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*inputs)  # type: ignore[operator]
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream.to(output.dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [LARGE, (8192, 2816), (8192, 2880), (777, 2867), (1, 64)])
def test_bias_gelu_is_no_worse_than_pytorch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden_TF, upstream_TF = torch.randn(2, *shape, device="cuda").to(dtype)
    tensors = [hidden_TF, torch.randn(shape[1], device="cuda").to(dtype)]
    ours = with_gradients(bias_gelu, tensors, upstream_TF)
    theirs = with_gradients(bias_gelu_reference, tensors, upstream_TF)
    exact = with_gradients(bias_gelu_reference, [tensor.double() for tensor in tensors], upstream_TF)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        no_worse(mine, other, truth, 1e-6)
    for first, second in zip(ours, with_gradients(bias_gelu, tensors, upstream_TF), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8192, 1024), (4099, 768), (777, 100), (777, 101), (1, 64)])
def test_layer_norm_is_no_worse_than_pytorch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden_TH, residual_TH, upstream_TH = torch.randn(3, *shape, device="cuda").to(dtype)
    weight_H, bias_H = torch.randn(2, shape[1], device="cuda").to(dtype)
    tensors = [hidden_TH, residual_TH, weight_H, bias_H]

    fused = partial(dropout_residual_layer_norm, dropout=0.0, eps=1e-12)
    reference = partial(dropout_residual_layer_norm_reference, dropout=0.0, eps=1e-12)

    ours = with_gradients(fused, tensors, upstream_TH)
    theirs = with_gradients(reference, tensors, upstream_TH)
    exact = with_gradients(reference, [tensor.double() for tensor in tensors], upstream_TH)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        no_worse(mine, other, truth, 2e-6)
    for first, second in zip(ours, with_gradients(fused, tensors, upstream_TH), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_mask_is_philox_and_backward_draws_it_again(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    seed = int(torch.randint(2**63 - 1, ()))
    rows, columns = 37, 104
    kept_TH = kept_reference(rows, columns, 0.1, seed).cuda()
    hidden_TH = torch.ones(rows, columns, device="cuda", dtype=dtype).requires_grad_()
    residual_TH = torch.randn(rows, columns, device="cuda").to(dtype).requires_grad_()
    weight_H, zero_H = torch.ones(columns, device="cuda", dtype=dtype), torch.zeros(columns, device="cuda", dtype=dtype)
    torch.manual_seed(5)
    output_TH = dropout_residual_layer_norm(hidden_TH, residual_TH, weight_H, zero_H, 0.1, 1e-12)
    hidden_gradient, residual_gradient = torch.autograd.grad(
        output_TH, [hidden_TH, residual_TH], torch.randn_like(output_TH)
    )
    scale = 65536 / (65536 - round(0.1 * 65536))
    expected_TH = F.layer_norm(residual_TH.double() + kept_TH * scale, (columns,), eps=1e-12)
    torch.testing.assert_close(output_TH.double(), expected_TH, rtol=0, atol=0.05 if dtype == torch.bfloat16 else 0.01)
    assert torch.equal(hidden_gradient != 0, kept_TH & (residual_gradient != 0))


def test_padded_width_changes_nothing_and_its_columns_stay_zero() -> None:
    torch.manual_seed(0)
    input_TH, weight_FH = torch.randn(300, 256, device="cuda"), torch.randn(717, 256, device="cuda") / 16
    bias_F, output_weight_HF = torch.randn(717, device="cuda"), torch.randn(256, 717, device="cuda") / 27
    neurons_TF = linear_gelu(input_TH, weight_FH, bias_F)
    assert neurons_TF.shape == (300, 768) and not neurons_TF[:, 717:].any()
    exact_TF = F.gelu(F.linear(input_TH.double(), weight_FH.double(), bias_F.double()))
    torch.testing.assert_close(neurons_TF[:, :717].double(), exact_TF, rtol=0, atol=1e-3)
    output_TH = linear(neurons_TF, output_weight_HF, None)
    torch.testing.assert_close(output_TH.double(), exact_TF @ output_weight_HF.double().T, rtol=0, atol=1e-2)


def test_lamb_step_is_lamb_in_float64() -> None:
    torch.manual_seed(0)
    places = [(0, 7), (7, 1), (8, 1000), (1009, 3 * CUDA_CHUNK + 5), (60_001, 517)]
    flats = [torch.randn(70_000, device="cuda") for _ in range(4)]
    flats[3].square_()
    before = [flat.double() for flat in flats]
    tensors = Tensors(*([flat] for flat in flats))
    step = lamb_step([Stretch(0, start, numel) for start, numel in places], tensors)
    assert isinstance(step, CudaLambStep)
    squares_2P = step.advance(tensors, Rates(4.0, (0.9, 0.999), 1e-6, 0.01, bias_correction=True))
    step.apply(torch.full((len(places),), -0.1, dtype=torch.float64, device="cuda"))
    for position, (start, numel) in enumerate(places):
        weight, gradient, first, second = (flat[start : start + numel] for flat in before)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9**4) / ((second / (1 - 0.999**4)).sqrt() + 1e-6) + 0.01 * weight
        torch.testing.assert_close(squares_2P[1, position], update.square().sum(), rtol=2e-6, atol=0)
        changed = flats[0][start : start + numel].double()
        torch.testing.assert_close(changed, weight - 0.1 * update, rtol=1e-5, atol=2e-6)


def seconds(run: object, rounds: int = 20) -> float:
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()  # type: ignore[operator]
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[rounds // 2]


def test_kernels_move_bytes_nearly_as_fast_as_a_copy() -> None:
    hidden_TF, upstream_TF = torch.randn(2, *LARGE, device="cuda", dtype=torch.float16)
    bias_F = torch.randn(LARGE[1], device="cuda", dtype=torch.float16)
    operators, large_bytes = torch.ops.earlybert, hidden_TF.numel() * 2
    copied = 2 * large_bytes / seconds(lambda: hidden_TF.copy_(upstream_TF))
    rows = LARGE[0] * 4
    narrow_TH, other_TH = hidden_TF.view(rows, 1024), upstream_TF.view(rows, 1024)
    vector_H, seed = bias_F[:1024].clone(), torch.tensor(1)
    saved = operators.dropout_residual_layer_norm_forward(narrow_TH, other_TH, vector_H, vector_H, 0.1, seed, 1e-12)
    runs = {
        "gelu forward": (2, lambda: operators.bias_gelu_forward(hidden_TF, bias_F)),
        "gelu backward": (3, lambda: operators.bias_gelu_backward(upstream_TF, hidden_TF, bias_F)),
        "norm forward": (
            4,
            lambda: operators.dropout_residual_layer_norm_forward(
                narrow_TH, other_TH, vector_H, vector_H, 0.1, seed, 1e-12
            ),
        ),
        "norm backward": (
            4,
            lambda: operators.dropout_residual_layer_norm_backward(other_TH, *saved[1:], vector_H, 0.1, seed),
        ),
    }
    shares = {name: tensors * large_bytes / seconds(run) / copied for name, (tensors, run) in runs.items()}
    assert min(shares.values()) >= LEAST_BANDWIDTH, shares
