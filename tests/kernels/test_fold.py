"""Folding coefficients into a weight against scaling the activation, and its numerics in half precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.kernels.fold import fold_coefficients, scale_columns_reference

HALF_PRECISIONS = [torch.bfloat16, torch.float16]
LOSS_SCALE = 2.0**16
Gradients = tuple[Tensor, Tensor, Tensor]


def make_operands(inputs: int, coefficients: int, outputs: int = 24, tokens: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Activation [tokens, I], weight [O, I] and coefficients [C], float64."""
    generator = torch.Generator().manual_seed(inputs + coefficients)
    shapes = ((tokens, inputs), (outputs, inputs), (coefficients,))
    activation, weight, coefficient = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return activation, weight, 1 + 0.3 * coefficient


def value_and_gradients(output: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return output, *torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize(("inputs", "coefficients"), [(48, 48), (64, 1), (192, 3)], ids=["neurons", "head", "heads"])
def test_folding_is_scaling_the_activation(inputs: int, coefficients: int) -> None:
    leaves = tuple(tensor.requires_grad_() for tensor in make_operands(inputs, coefficients))
    activation, weight, coefficient = leaves
    folded = value_and_gradients(F.linear(activation, fold_coefficients(weight, coefficient)), leaves)
    scaled = value_and_gradients(F.linear(scale_columns_reference(activation, coefficient), weight), leaves)
    for ours, reference in zip(folded, scaled, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_reference_scales_each_head_by_its_own_coefficient() -> None:
    activation, _, coefficient = make_operands(192, 3)
    scaled = scale_columns_reference(activation, coefficient)
    for head in range(3):
        columns = slice(64 * head, 64 * (head + 1))
        assert torch.equal(scaled[:, columns], activation[:, columns] * coefficient[head])


@pytest.mark.parametrize(("inputs", "coefficients"), [(5, 5), (6, 2)])
def test_gradients_are_the_numerical_ones(inputs: int, coefficients: int) -> None:
    _, weight, coefficient = make_operands(inputs, coefficients, outputs=3)
    assert torch.autograd.gradcheck(fold_coefficients, (weight.requires_grad_(), coefficient.requires_grad_()))


def test_coefficients_of_one_change_nothing() -> None:
    _, weight, _ = make_operands(192, 3)
    for dtype in (torch.float64, torch.float32, *HALF_PRECISIONS):
        folded = fold_coefficients(weight.to(dtype), torch.ones(3))
        assert folded.dtype == dtype and torch.equal(folded, weight.to(dtype))


@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_coefficient_gradient_is_summed_in_fp32(dtype: torch.dtype) -> None:
    """Only the products that reach the operation may be rounded: their sum over rows and columns of a head is fp32."""
    _, weight, coefficient = make_operands(512, 8, outputs=256)
    weight = weight.to(dtype)
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    coefficient = coefficient.float().requires_grad_()
    fold_coefficients(weight, coefficient).backward(upstream)
    exact = (upstream.double() * weight.double()).sum(0).view(8, 64).sum(1)
    assert coefficient.grad is not None and coefficient.grad.dtype == torch.float32
    torch.testing.assert_close(coefficient.grad.double(), exact, rtol=0, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_ranking_survives_half_precision(dtype: torch.dtype) -> None:
    """At loss scale 2^16, as fp16 training begins; without one the products would vanish in fp16."""
    activation, weight, coefficient = (tensor.float() for tensor in make_operands(256, 256, outputs=128, tokens=64))
    activation, weight = activation.to(dtype), (0.02 * weight).to(dtype)
    coefficient.requires_grad_()
    output = F.linear(activation, fold_coefficients(weight, coefficient)).float()
    (LOSS_SCALE * 1e-3 * output.square().mean()).backward()
    exact = coefficient.detach().double().requires_grad_()
    scaled = F.linear(scale_columns_reference(activation.double(), exact), weight.double())
    (LOSS_SCALE * 1e-3 * scaled.square().mean()).backward()
    assert coefficient.grad is not None and exact.grad is not None
    difference = (coefficient.grad.double() - exact.grad).norm() / exact.grad.norm()
    # Outputs and the weight's gradient are rounded before they come here: eight bits in bf16, eleven in fp16.
    assert difference < (4e-3 if dtype == torch.bfloat16 else 5e-4)
    ranks = torch.stack([grad.abs().double().argsort().argsort() for grad in (coefficient.grad, exact.grad)])
    assert float(torch.corrcoef(ranks.double())[0, 1]) > 0.9999


def test_sum_beyond_fp16_does_not_overflow() -> None:
    """At loss scale 2^16 the sum over a head leaves fp16's range though none of its terms does."""
    _, weight, _ = make_operands(192, 3, outputs=64)
    weight = weight.abs().half()
    coefficient = torch.ones(3, requires_grad=True)
    gradient = torch.full(weight.shape, 0.5)
    fold_coefficients(weight, coefficient).backward((LOSS_SCALE * gradient).half())
    exact = (gradient.double() * weight.double()).sum(0).view(3, 64).sum(1)
    assert LOSS_SCALE * float(exact.min()) > torch.finfo(torch.float16).max
    assert coefficient.grad is not None
    torch.testing.assert_close(coefficient.grad.double() / LOSS_SCALE, exact, rtol=1e-6, atol=0)
