"""torch.compile sees each operation as part of one graph, for any number of rows, and no random number is frozen in it.

With the emulated kernels on CPU tensors, and with attention's GPU path on the meta device; "aot_eager" traces forward
and backward as every backend does, and needs no compiler.
"""

from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from earlybert.kernels import extension, operators
from earlybert.kernels.cross_entropy import linear_cross_entropy
from earlybert.kernels.dropout import dropout
from earlybert.kernels.fold import fold_coefficients
from earlybert.kernels.gelu import linear, linear_gelu
from earlybert.kernels.layer_norm import dropout_residual_layer_norm
from earlybert.kernels.packed_attention import packed_attention
from earlybert.kernels.packing import Packing

HIDDEN, NEURONS, VOCABULARY = 16, 72, 40
LENGTHS = (5, 12, 31, 33)


@pytest.fixture(autouse=True)
def forgotten_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def kernels(operators: torch.library.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors take the emulated kernels."""
    monkeypatch.setattr(extension, "_usable_on", torch.compiler.assume_constant_result(lambda device: True))


def one_graph(function: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True), counter


def random_rows(length: int) -> Tensor:
    """[T, H], of which a compiler is told that the number of rows varies."""
    hidden_TH = torch.randn(length, HIDDEN).requires_grad_()
    torch._dynamo.mark_dynamic(hidden_TH, 0)
    return hidden_TH


def vectors(count: int) -> list[Tensor]:
    return [vector_H.requires_grad_() for vector_H in torch.randn(count, HIDDEN).unbind()]


def feed_forward(
    hidden_TH: Tensor, weight_FH: Tensor, bias_F: Tensor, output_HF: Tensor, coefficient_F: Tensor
) -> Tensor:
    return linear(linear_gelu(hidden_TH, weight_FH, bias_F), fold_coefficients(output_HF, coefficient_F), None)


def layer_norm(hidden_TH: Tensor, weight_H: Tensor, bias_H: Tensor) -> Tensor:
    return dropout_residual_layer_norm(hidden_TH, hidden_TH.sin(), weight_H, bias_H, 0.0, 1e-12)


def dropout_layer_norm(hidden_TH: Tensor, weight_H: Tensor, bias_H: Tensor) -> Tensor:
    return dropout_residual_layer_norm(hidden_TH, hidden_TH.sin(), weight_H, bias_H, 0.25, 1e-12)


def random_dropout(hidden_TH: Tensor) -> Tensor:
    return dropout(hidden_TH, 0.25)


def masked_token_loss(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
    labels_T = hidden_TH.detach()[:, 0].abs().long()
    loss, correct = linear_cross_entropy(hidden_TH, weight_VH, bias_V, labels_T)
    return loss + correct


def cases() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    torch.manual_seed(0)
    weight_FH, output_HF = torch.randn(NEURONS, HIDDEN).requires_grad_(), torch.randn(HIDDEN, NEURONS).requires_grad_()
    weight_VH, bias_V = torch.randn(VOCABULARY, HIDDEN).requires_grad_(), torch.randn(VOCABULARY).requires_grad_()
    coefficient_F, bias_F = (torch.randn(NEURONS).requires_grad_() for _ in range(2))
    return {
        "feed-forward": (feed_forward, [weight_FH, bias_F, output_HF, coefficient_F]),
        "LayerNorm": (layer_norm, vectors(2)),
        "LayerNorm and dropout": (dropout_layer_norm, vectors(2)),
        "dropout": (random_dropout, []),
        "cross-entropy": (masked_token_loss, [weight_VH, bias_V]),
    }


@pytest.mark.parametrize(
    ("name", "with_kernels"),
    [
        ("feed-forward", False),
        ("feed-forward", True),
        ("LayerNorm", False),
        ("LayerNorm", True),
        ("LayerNorm and dropout", True),
        ("cross-entropy", False),
    ],
)
def test_one_graph_serves_all_lengths_with_the_same_bits(
    name: str, with_kernels: bool, request: pytest.FixtureRequest
) -> None:
    if with_kernels:
        request.getfixturevalue("kernels")
    function, parameters = cases()[name]
    compiled, counter = one_graph(function)
    for length in LENGTHS:
        hidden_TH, results = random_rows(length), []
        for implementation in (function, compiled):
            torch.manual_seed(length)
            output = implementation(hidden_TH, *parameters)
            gradients = torch.autograd.grad(output.square().sum(), [hidden_TH, *parameters])
            results.append([output, *gradients])
        for eager, traced in zip(*results, strict=True):
            assert torch.equal(eager, traced)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("name", "with_kernels"),
    [("LayerNorm and dropout", True), ("LayerNorm and dropout", False), ("dropout", False)],
)
def test_each_call_of_a_graph_draws_a_mask_of_its_own(
    name: str, with_kernels: bool, request: pytest.FixtureRequest
) -> None:
    if with_kernels:
        request.getfixturevalue("kernels")
    function, parameters = cases()[name]
    compiled, counter = one_graph(function)
    for length in LENGTHS:
        hidden_TH = random_rows(length)
        torch.manual_seed(length)
        first, second = compiled(hidden_TH, *parameters), compiled(hidden_TH, *parameters)
        torch.manual_seed(length)
        assert not torch.equal(first, second) and torch.equal(compiled(hidden_TH, *parameters), first)
    assert counter.frame_count == 1


def test_attention_on_a_gpu_is_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARLYBERT_ATTENTION", "flash")

    def attention(qkv_T3AD: Tensor, tokens: Packing) -> Tensor:
        query_TAD, key_TAD, value_TAD = qkv_T3AD.unbind(1)
        return packed_attention(query_TAD, key_TAD, value_TAD, tokens, tokens, 0.1)

    compiled, counter = one_graph(attention)
    for lengths in ([5, 2, 9], [4, 4, 1, 30], [7], [1, 2, 3, 4, 5]):
        tokens = Packing.of(lengths).to(torch.device("meta"))
        torch._dynamo.mark_dynamic(tokens.bounds, 0)
        qkv_T3AD = torch.empty(tokens.tokens, 3, 2, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
        torch._dynamo.mark_dynamic(qkv_T3AD, 0)
        context_TAD = compiled(qkv_T3AD, tokens)
        assert context_TAD.shape == (sum(lengths), 2, 8)
        context_TAD.sum().backward()
    assert counter.frame_count <= 2


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(7, HIDDEN).to(dtype)


def operator_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    for dtype in operators.DTYPES:
        vector_H, seed = rows(dtype)[0], torch.tensor(3)
        yield "bias_gelu_forward", (rows(dtype), vector_H)
        yield "bias_gelu_backward", (rows(dtype), rows(dtype), vector_H)
        for probability in (0.0, 0.1):
            arguments = rows(dtype), vector_H, vector_H, probability, seed
            yield (
                "dropout_residual_layer_norm_forward",
                (rows(dtype), *arguments, 1e-12),
            )
            statistics = torch.ones(7), torch.ones(7)
            yield (
                "dropout_residual_layer_norm_backward",
                (rows(dtype), rows(dtype), *statistics, vector_H, probability, seed),
            )


def test_operators_return_what_tracing_expects(
    operators: torch.library.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earlybert.kernels.operators.PARTIAL_SUMS", emulated.PARTIAL_SUMS)
    for name, arguments in operator_calls():
        operator = getattr(torch.ops.earlybert, name).default
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
