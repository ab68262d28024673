"""The loss in chunks against the plain one: value, correct predictions and every gradient."""

import pytest
import torch
from torch import Tensor

from earlybert.kernels import cross_entropy as module
from earlybert.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

PREDICTIONS, HIDDEN, VOCABULARY, PADDED = 37, 16, 70, 76


Inputs = tuple[Tensor, Tensor, Tensor]
"""Hidden states, vocabulary and bias."""


def make_inputs(dtype: torch.dtype, predictions: int = PREDICTIONS) -> tuple[Inputs, Tensor]:
    """Hidden states, vocabulary and bias (minus infinity on padding rows); labels."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(predictions, HIDDEN, generator=generator, dtype=torch.float64)
    weight = 0.3 * torch.randn(PADDED, HIDDEN, generator=generator, dtype=torch.float64)
    bias = torch.randn(PADDED, generator=generator, dtype=torch.float64)
    bias[VOCABULARY:] = -torch.inf
    labels = torch.randint(0, VOCABULARY, (predictions,), generator=generator)
    labels[::3] = (hidden @ weight.T + bias)[::3].argmax(-1)
    hidden, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias))
    return (hidden, weight, bias), labels


def with_gradients(result: tuple[Tensor, Tensor], inputs: Inputs) -> list[Tensor]:
    loss, correct = result
    return [loss, correct, *torch.autograd.grad(0.37 * loss, inputs)]


@pytest.mark.parametrize("block", [1, 1 << 18])
@pytest.mark.parametrize("chunk", [1, 10, PREDICTIONS, 1000, None])
def test_chunked_equals_plain(chunk: int | None, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    inputs, labels = make_inputs(torch.float64)
    expected = with_gradients(linear_cross_entropy_reference(*inputs, labels), inputs)
    found = with_gradients(linear_cross_entropy(*inputs, labels, chunk), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert torch.count_nonzero(found[-1][VOCABULARY:]) == 0 and torch.count_nonzero(found[-2][VOCABULARY:]) == 0
    assert PREDICTIONS // 3 <= int(found[1]) < PREDICTIONS


@pytest.mark.parametrize(
    ("device", "predictions", "rows"),
    [
        ("cpu", 640, 549),
        ("cpu", 1, 549),
        ("cuda", 640, 640),
        ("cuda", 4396, 4396),
        ("cuda", 4397, 2199),
        ("cuda", 0, 0),
    ],
)
def test_a_gpu_gets_as_few_and_as_equal_chunks_as_fit(device: str, predictions: int, rows: int) -> None:
    assert module._chunk_rows(predictions, 30528, torch.device(device)) == rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_the_plain_loss(dtype: torch.dtype) -> None:
    exact, labels = make_inputs(torch.float64)
    expected = with_gradients(linear_cross_entropy_reference(*exact, labels), exact)
    inputs, _ = make_inputs(dtype)
    errors = []
    for result in (linear_cross_entropy(*inputs, labels, 10), linear_cross_entropy_reference(*inputs, labels)):
        found = with_gradients(result, inputs)
        assert found[0].dtype == torch.float32 and [g.dtype for g in found[2:]] == [dtype] * 3
        pairs = zip((found[0], *found[2:]), (expected[0], *expected[2:]), strict=True)
        errors.append([float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in pairs])
    assert all(ours <= 1.5 * plain + 1e-7 for ours, plain in zip(*errors, strict=True)), errors


def test_fp16_gradients_reach_under_its_smallest_number() -> None:
    """Probabilities of 1e-8 vanish in fp16; a loss scale must get at them before they are rounded."""
    hidden = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(8, 1, dtype=torch.float16, requires_grad=True)
    bias = torch.tensor([-18.0] * 7 + [0.0], dtype=torch.float16, requires_grad=True)
    loss, _ = linear_cross_entropy(hidden, weight, bias, torch.tensor([7]))
    (gradient,) = torch.autograd.grad(loss * 2.0**16, weight)
    expected = torch.exp(torch.tensor(-18.0, dtype=torch.float64)) * 2**16
    torch.testing.assert_close(gradient[:7].double(), expected.expand(7, 1), rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_predictions(dtype: torch.dtype) -> None:
    """The loss is zero and still has a gradient: other ranks may wait for it."""
    inputs, labels = make_inputs(dtype, predictions=0)
    loss, correct = linear_cross_entropy(*inputs, labels)
    assert float(loss.detach()) == 0.0 and int(correct) == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, inputs))


def test_evaluation_computes_the_loss_alone() -> None:
    inputs, labels = make_inputs(torch.float64)
    with torch.no_grad():
        loss, correct = linear_cross_entropy(*inputs, labels, 7)
    expected, expected_correct = linear_cross_entropy_reference(*inputs, labels)
    assert not loss.requires_grad and int(correct) == int(expected_correct)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=0)


def test_second_backward_pass_is_refused() -> None:
    """The first one uses the stored gradient up."""
    inputs, labels = make_inputs(torch.float64)
    loss, _ = linear_cross_entropy(*inputs, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
