"""The CUDA kernels' own source, run on a CPU thread by thread, against float64, Philox's known answers and PyTorch."""

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.kernels import layer_norm
from earlybert.kernels.gelu import _BiasGelu, bias_gelu_reference
from earlybert.kernels.lamb_step import CUDA_CHUNK, CudaLambStep, Rates, Stretch, Tensors
from earlybert.kernels.layer_norm import _DropoutResidualLayerNorm, dropout_residual_layer_norm_reference
from tests.kernels.emulated import pointer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One row; a width of whole packs; an odd width; more packs than threads in a block.
GELU_SHAPES = [(1, 64), (37, 104), (37, 101), (11, 1096)]
NORM_SHAPES = [(1, 64), (23, 104), (23, 101), (9, 768)]


def philox_reference(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's integers (Salmon et al. 2011)."""
    word = 2**32
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = (
            (second // word) ^ counter[1] ^ key[0],
            second % word,
            (first // word) ^ counter[3] ^ key[1],
            first % word,
        )
        key = ((key[0] + 0x9E3779B9) % word, (key[1] + 0xBB67AE85) % word)
    return counter


def kept_reference(rows: int, columns: int, probability: float, seed: int) -> Tensor:
    """Which elements dropout keeps: 16 bits of Philox(column / 8, row; seed) at lane column % 8."""
    threshold = int(probability * 65536 + 0.5)
    kept = torch.empty(rows, columns, dtype=torch.bool)
    for row in range(rows):
        for column in range(columns):
            words = philox_reference((column // 8, row % 2**32, row // 2**32, 0), (seed % 2**32, seed // 2**32))
            kept[row, column] = words[column % 8 // 2] >> 16 * (column % 2) & 0xFFFF >= threshold
    return kept


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # Random123's kat_vectors.
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(
    library: ctypes.CDLL, counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    random = (ctypes.c_uint * 4)()
    library.scalar_philox((ctypes.c_uint * 4)(*counter), *map(ctypes.c_uint, key), random)
    assert tuple(random) == answer
    assert philox_reference(counter, key) == answer


def test_scalar_gelu_is_that_of_float64(library: ctypes.CDLL) -> None:
    argument = torch.linspace(-12, 12, 100_001)
    value, derivative = torch.empty_like(argument), torch.empty_like(argument)
    library.scalar_gelu(pointer(argument), pointer(value), pointer(derivative), ctypes.c_longlong(len(argument)))
    exact = argument.double().requires_grad_()
    F.gelu(exact).sum().backward()
    assert (value - F.gelu(exact)).abs().max() < 1e-6
    assert exact.grad is not None
    assert (derivative - exact.grad).abs().max() < 5e-7


def test_scalar_lamb_is_that_of_float64(library: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(10_000, 4, generator=generator)
    numbers[:, 3].square_()
    weight, gradient, first, second = numbers.double().unbind(1)
    beta1, beta2, decay, eps, step = 0.9, 0.999, 0.01, 1e-6, 7
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    first_correction, second_correction = 1 - beta1**step, 1 - beta2**step
    update = first / first_correction / ((second / second_correction).sqrt() + eps) + decay * weight
    scales = first_correction / second_correction**0.5, first_correction * eps
    library.scalar_lamb(
        *(pointer(numbers), *map(ctypes.c_double, (beta1, beta2, decay))),
        *(*map(ctypes.c_double, scales), ctypes.c_longlong(len(numbers))),
    )
    for column, exact in ((1, update), (2, first), (3, second)):
        torch.testing.assert_close(numbers[:, column].double(), exact, rtol=2e-6, atol=1e-6)


def no_worse(ours: Tensor, theirs: Tensor, exact: Tensor, limit: float) -> None:
    """Our error is at most twice PyTorch's in the same precision, or within `limit` of the largest value."""
    exact = exact.detach()
    errors = [(result.detach().double() - exact).abs().max() / exact.abs().max() for result in (ours, theirs)]
    error, allowed = map(float, errors)
    assert torch.isfinite(ours).all()
    assert error <= max(2 * allowed, limit), (error, allowed)


def gradients_of(output: Tensor, upstream: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output, inputs, upstream))


def in_dtype(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", GELU_SHAPES)
def test_bias_gelu(operators: torch.library.Library, shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_TF, upstream_TF = torch.randn(2, *shape, generator=generator).to(dtype) * 2
    bias_F = torch.randn(shape[1], generator=generator).to(dtype)
    exact = in_dtype([hidden_TF, bias_F], torch.float64)
    exact_output = bias_gelu_reference(*exact)
    exact_gradients = gradients_of(exact_output, upstream_TF.double(), exact)
    results = []
    for function in (_BiasGelu.apply, bias_gelu_reference):
        inputs = in_dtype([hidden_TF, bias_F], dtype)
        output = function(*inputs)
        assert output.dtype == dtype
        results.append([output, *gradients_of(output, upstream_TF, inputs)])
    for ours, theirs, truth in zip(*results, [exact_output, *exact_gradients], strict=True):
        no_worse(ours, theirs, truth, 1e-6)
    # In fp32 the bias gradient is summed before it is rounded.
    _, partial = torch.ops.earlybert.bias_gelu_backward(upstream_TF, hidden_TF, bias_F)
    no_worse(partial.sum(0), partial.sum(0), exact_gradients[1], 2e-3 if dtype != torch.float32 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_residual_layer_norm(
    operators: torch.library.Library,
    shape: tuple[int, int],
    dtype: torch.dtype,
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden_TH, residual_TH, upstream_TH = torch.randn(3, *shape, generator=generator).to(dtype)
    weight_H, bias_H = torch.randn(2, shape[1], generator=generator).to(dtype)
    tensors = [hidden_TH, residual_TH, weight_H, bias_H]
    torch.manual_seed(3)
    seed = int(torch.randint(2**63 - 1, ()))
    kept_TH = kept_reference(*shape, dropout, seed)
    scale = 65536 / (65536 - int(dropout * 65536 + 0.5))
    # PyTorch's side gets the mask that Philox defines.
    monkeypatch.setattr(layer_norm, "drop", lambda value, probability: value * kept_TH.to(value.dtype) * scale)
    results = []
    norms: list[tuple[Callable[..., Tensor], torch.dtype]] = [
        (_DropoutResidualLayerNorm.apply, dtype),
        (dropout_residual_layer_norm_reference, dtype),
        (dropout_residual_layer_norm_reference, torch.float64),
    ]
    for function, precision in norms:
        inputs = in_dtype(tensors, precision)
        torch.manual_seed(3)
        output = function(*inputs, dropout, 1e-12)
        assert output.dtype == precision
        results.append([output, *gradients_of(output, upstream_TH.to(precision), inputs)])
    for ours, theirs, truth in zip(*results, strict=True):
        no_worse(ours, theirs, truth, 2e-6)


def test_dropout_drops_its_share_and_depends_on_row_column_and_seed(operators: torch.library.Library) -> None:
    ones_TH, zeros_H = torch.ones(64, 512), torch.zeros(512)

    def kept(probability: float, seed: int) -> Tensor:
        arguments = (ones_TH, torch.zeros_like(ones_TH), zeros_H, zeros_H, probability, torch.tensor(seed), 1e-12)
        return torch.ops.earlybert.dropout_residual_layer_norm_forward(*arguments)[1] != 0

    for probability in (0.1, 0.5):
        share = 1 - kept(probability, 5).double().mean()
        # Four standard deviations.
        assert abs(share - probability) < 4 * (probability * (1 - probability) / ones_TH.numel()) ** 0.5
    assert torch.equal(kept(0.5, 5), kept(0.5, 5))
    for other in (kept(0.5, 6), kept(0.5, 5 + 2**32), kept(0.5, 5).roll(1, 0), kept(0.5, 5).roll(8, 1)):
        assert abs((kept(0.5, 5) != other).double().mean() - 0.5) < 0.02


def test_lamb_step_is_lamb_in_float64_on_stretches_at_any_address(operators: torch.library.Library) -> None:
    generator = torch.Generator().manual_seed(4)
    # Start in the flat tensor, elements: unaligned starts, a single element, more than one chunk, an empty stretch.
    places = [(0, 7), (7, 1), (8, 1000), (1009, 2 * CUDA_CHUNK + 5), (1009 + 2 * CUDA_CHUNK + 5, 0), (40_001, 517)]
    flats = [torch.randn(50_000, generator=generator) for _ in range(4)]
    flats[3].square_()
    # A gradient tensor at another offset from a 16-byte border: the path of single elements.
    flats[1] = torch.cat((torch.zeros(1), flats[1]))[1:]
    before = [flat.clone() for flat in flats]
    step = CudaLambStep([Stretch(0, start, numel) for start, numel in places], flats[0].device)
    betas, eps, decay, count = (0.9, 0.999), 1e-6, 0.01, 3.0
    factors = [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]
    squares_2P = step.advance(
        Tensors(*([flat] for flat in flats)), Rates(count, betas, eps, decay, bias_correction=True)
    )
    step.apply(torch.tensor(factors, dtype=torch.float64))
    touched = torch.zeros(50_000, dtype=torch.bool)
    for position, (start, numel) in enumerate(places):
        weight, gradient, first, second = (flat[start : start + numel].double() for flat in before)
        touched[start : start + numel] = True
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        corrected = first / (1 - betas[0] ** count)
        update = corrected / ((second / (1 - betas[1] ** count)).sqrt() + eps) + decay * weight
        torch.testing.assert_close(squares_2P[0, position], weight.square().sum(), rtol=2e-6, atol=0)
        torch.testing.assert_close(squares_2P[1, position], update.square().sum(), rtol=2e-6, atol=0)
        exact = (weight + factors[position] * update, gradient, first, second)
        for flat, expected in zip(flats, exact, strict=True):
            torch.testing.assert_close(flat[start : start + numel].double(), expected, rtol=1e-5, atol=2e-6)
    for flat, old in zip(flats, before, strict=True):
        torch.testing.assert_close(flat[~touched], old[~touched], rtol=0, atol=0)
