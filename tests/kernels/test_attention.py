"""Attention against its definition written as a loop, and against PyTorch's own."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from earlybert.kernels.attention import LONGEST_PLAIN_ON_CPU, attention, attention_reference

HEAD_COUNTS = range(1, 17)


def make_qkv(batch: int, length: int, heads: int, head_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(heads + length)
    return torch.randn(batch, length, 3, heads, head_size, generator=generator, dtype=dtype)


def ragged_mask(batch: int, length: int) -> Tensor:
    """True for the tokens of sequences of different lengths, the first one full."""
    lengths = torch.tensor([max(1, length - 3 * row) for row in range(batch)])
    return torch.arange(length)[None] < lengths[:, None]


def looped_attention(qkv: Tensor, attended: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)) v, one query of one head of one sequence at a time."""
    batch, length, _, heads, head_size = qkv.shape
    context = torch.zeros(batch, length, heads, head_size, dtype=qkv.dtype)
    for row in range(batch):
        keys = [s for s in range(length) if attended is None or attended[row, s]]
        for head in range(heads):
            for position in range(length):
                query = qkv[row, position, 0, head]
                weights = [math.exp(float(query @ qkv[row, key, 1, head]) / math.sqrt(head_size)) for key in keys]
                for weight, key in zip(weights, keys, strict=True):
                    context[row, position, head] += weight / sum(weights) * qkv[row, key, 2, head]
    return context


def torch_attention(qkv: Tensor, attended: Tensor | None) -> Tensor:
    query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
    mask = None if attended is None else attended[:, None, None, :]
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("heads", [1, 2, 5])
def test_reference_is_the_definition(heads: int, masked: bool) -> None:
    qkv = make_qkv(2, 7, heads, 4)
    attended = ragged_mask(2, 7) if masked else None
    torch.testing.assert_close(
        attention_reference(qkv, attended), looped_attention(qkv, attended), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("heads", HEAD_COUNTS)
def test_every_head_count_equals_torch(heads: int, masked: bool) -> None:
    attended = ragged_mask(3, 10) if masked else None
    results = []
    for implementation in (attention, attention_reference, torch_attention):
        qkv = make_qkv(3, 10, heads, 8).requires_grad_()
        context = implementation(qkv, attended)
        (gradient,) = torch.autograd.grad(context.square().sum(), qkv)
        results.append((context, gradient))
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("heads", HEAD_COUNTS)
def test_context_of_one_token_is_its_value(heads: int) -> None:
    qkv = make_qkv(4, 1, heads, 8)
    for attended in (None, torch.ones(4, 1, dtype=torch.bool)):
        torch.testing.assert_close(attention(qkv, attended), qkv[:, :, 2], rtol=1e-14, atol=0)


@pytest.mark.parametrize("implementation", [attention, attention_reference])
def test_padding_has_no_influence(implementation: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    qkv, attended = make_qkv(2, 12, 3, 8), ragged_mask(2, 12)
    changed = torch.where(attended[:, :, None, None, None], qkv, torch.full_like(qkv, 50.0))
    before, after = implementation(qkv, attended), implementation(changed, attended)
    assert torch.equal(before[attended], after[attended])


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("length", [LONGEST_PLAIN_ON_CPU, LONGEST_PLAIN_ON_CPU + 1, 300])
def test_long_sequences_equal_the_reference(length: int, masked: bool) -> None:
    """Beyond the border PyTorch's fused kernel computes; in fp32 both must be equally near to float64."""
    attended = ragged_mask(2, length) if masked else None
    qkv = make_qkv(2, length, 3, 16, torch.float32)
    exact = make_qkv(2, length, 3, 16, torch.float32).double().requires_grad_()
    qkv.requires_grad_()
    context, expected = attention(qkv, attended), attention_reference(exact, attended)
    torch.testing.assert_close(context.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(context.square().sum(), qkv)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), exact)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


def test_dropout_zeroes_attention_weights_and_keeps_their_mean() -> None:
    qkv = make_qkv(1, 6, 2, 4)
    torch.manual_seed(0)
    contexts = attention(qkv.expand(4000, -1, -1, -1, -1), None, dropout=0.5)
    expected = looped_attention(qkv, None)
    assert not torch.allclose(contexts[:1], expected, atol=0.05)
    torch.testing.assert_close(contexts.mean(0, keepdim=True), expected, rtol=0, atol=0.08)
