"""Packed attention against its definition and Hugging Face's, its gradient, and the table that picks a kernel."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from earlybert.kernels import packed_attention as module
from earlybert.kernels.attention import attention_reference
from earlybert.kernels.packed_attention import (
    IMPLEMENTATIONS,
    Setting,
    choose_attention,
    packed_attention,
    packed_attention_reference,
)
from earlybert.kernels.packing import Packing

# Ragged, all of one length, one-token sequences among others, only one-token sequences, a batch of one, all different
# with long neighbours.
LENGTHS = [(5, 3, 9, 1), (6, 6, 6), (1, 7, 1), (1, 1, 1), (8,), (40, 2, 33, 1, 17)]
FUSED = ["flash", "memory_efficient"]


Rows = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""


def make_rows(queries: Packing, keys: Packing, heads: int) -> Rows:
    generator = torch.Generator().manual_seed(heads)

    def rows(packing: Packing) -> Tensor:
        shape = (packing.tokens, heads, 8)
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    return rows(queries), rows(keys), rows(keys)


def copies(rows: Rows, dtype: torch.dtype, device: str = "cpu") -> Rows:
    """The same numbers elsewhere, with gradients of their own."""
    query, key, value = (each.detach().to(device, dtype).requires_grad_() for each in rows)
    return query, key, value


def padded_attention(rows: Rows, packing: Packing) -> Tensor:
    """The padded definition, of which only the real rows are taken."""
    attended = torch.arange(max(packing.lengths))[None] < torch.tensor(packing.lengths)[:, None]
    qkv = torch.stack(list(rows), 1)
    padded = qkv.new_full((*attended.shape, *qkv.shape[1:]), 7.0)
    padded[attended] = qkv
    return attention_reference(padded, attended)[attended]


def with_gradients(context: Tensor, rows: Rows) -> list[Tensor]:
    weights = torch.linspace(-1, 1, context.numel(), dtype=context.dtype).view_as(context)
    return [context, *torch.autograd.grad((context * weights).sum(), rows)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_reference_is_the_padded_definition(lengths: tuple[int, ...]) -> None:
    packing = Packing.of(lengths)
    rows = make_rows(packing, packing, 3)
    found = with_gradients(packed_attention_reference(*rows, packing, packing), rows)
    torch.testing.assert_close(found, with_gradients(padded_attention(rows, packing), rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 200, 1 << 18])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_blocks_equal_the_reference(lengths: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one sequence a block, a few, and all in one."""
    monkeypatch.setattr(module, "CPU_BLOCK", limit)
    packing = Packing.of(lengths)
    rows = make_rows(packing, packing, 2)
    found = with_gradients(IMPLEMENTATIONS["blocks"](*rows, packing, packing, 0.0), rows)
    expected = with_gradients(packed_attention_reference(*rows, packing, packing), rows)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("asking", "lengths"), [((2, 1, 4, 1), (5, 3, 9, 1)), ((2, 2), (6, 6)), ((1,), (5,))])
def test_fewer_queries_give_the_rows_of_all(asking: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    queries, keys = Packing.of(asking), Packing.of(lengths)
    rows = make_rows(keys, keys, 3)
    chosen = torch.cat([start + torch.arange(n) for start, n in zip(keys.bounds.tolist(), asking, strict=False)])
    subset = IMPLEMENTATIONS["blocks"](rows[0][chosen], rows[1], rows[2], queries, keys, 0.0)
    full = packed_attention_reference(*rows, keys, keys)[chosen]
    found, expected = with_gradients(subset, rows), with_gradients(full, rows)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("heads", range(1, 17))
def test_every_head_count(heads: int) -> None:
    packing = Packing.of((7, 2, 12))
    rows = make_rows(packing, packing, heads)
    found = with_gradients(packed_attention(*rows, packing, packing), rows)
    torch.testing.assert_close(found, with_gradients(padded_attention(rows, packing), rows), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_pytorchs_own(dtype: torch.dtype) -> None:
    """Against float64, at most twice what the plain definition is off by in the same precision."""
    packing = Packing.of((64, 50, 3))
    exact = make_rows(packing, packing, 4)
    expected = with_gradients(packed_attention_reference(*exact, packing, packing), exact)
    rows = copies(exact, dtype)
    errors = []
    for implementation in (packed_attention, packed_attention_reference):
        found = with_gradients(implementation(*rows, packing, packing), rows)
        errors.append(
            [float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in zip(found, expected, strict=True)]
        )
    assert all(ours <= 2 * plain for ours, plain in zip(*errors, strict=True)), errors


def test_gradient_with_dropout_is_that_of_the_same_mask() -> None:
    """Numerically: the mask is drawn from a generator that is set back for every evaluation."""
    queries, keys = Packing.of((2, 3, 1)), Packing.of((4, 3, 2))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(3)
        return packed_attention(query, key, value, queries, keys, 0.4)

    assert torch.autograd.gradcheck(attend, make_rows(queries, keys, 2))


def test_dropout_keeps_the_mean() -> None:
    packing = Packing.of([6] * 4000)
    query, key, value = torch.randn(3, 6, 2, 8)
    torch.manual_seed(0)
    repeated = query.repeat(4000, 1, 1), key.repeat(4000, 1, 1), value.repeat(4000, 1, 1)
    contexts = packed_attention(*repeated, packing, packing, 0.5).unflatten(0, (4000, 6))
    expected = packed_attention_reference(query, key, value, Packing.of([6]), Packing.of([6]))
    assert not torch.allclose(contexts[0], expected, atol=0.05)
    torch.testing.assert_close(contexts.mean(0), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_take_what_they_are_given(name: str, dtype: torch.dtype) -> None:
    """Shapes, strides and both passes, by PyTorch's own description of its GPU kernels; nothing is computed."""
    queries, keys = Packing.of((2, 1)), Packing.of((5, 3))
    bounds = [torch.empty(3, dtype=torch.int32, device="meta") for _ in range(2)]
    query = torch.empty(3, 5, 64, dtype=dtype, device="meta", requires_grad=True)
    projection = torch.empty(8, 2, 5, 64, dtype=dtype, device="meta", requires_grad=True)
    context = IMPLEMENTATIONS[name](
        query, *projection.unbind(1), replace(queries, bounds=bounds[0]), replace(keys, bounds=bounds[1]), 0.1
    )
    assert (context.shape, context.dtype, context.device.type) == (query.shape, dtype, "meta")
    assert context.requires_grad
    if name == "flash":  # PyTorch's description of the other one's backward pass fails on its own arguments.
        gradients = torch.autograd.grad(context.sum(), (query, projection))
        assert [gradient.shape for gradient in gradients] == [query.shape, projection.shape]


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*FUSED, "blocks"])
def test_gpu_error_is_pytorchs_own(name: str, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    if name == "flash" and (dtype == torch.float32 or torch.cuda.get_device_capability() < (8, 0)):
        pytest.skip("flash attention computes in half precision on sm_80 and newer")
    packing = Packing.of(lengths)
    exact = make_rows(packing, packing, 4)
    expected = with_gradients(packed_attention_reference(*exact, packing, packing), exact)
    rows, on_gpu = copies(exact, dtype, "cuda"), packing.to(torch.device("cuda"))
    errors = []
    for each in (name, "reference"):
        found = with_gradients(IMPLEMENTATIONS[each](*rows, on_gpu, on_gpu, 0.0), rows)
        errors.append([float((a.detach().cpu() - b.detach()).norm()) for a, b in zip(found, expected, strict=True)])
    assert all(ours <= 2 * plain + 1e-6 for ours, plain in zip(*errors, strict=True)), errors


def test_packing_counts() -> None:
    packing = Packing.of((3, 1, 4))
    assert packing.tokens == 8 and packing.bounds.tolist() == [0, *accumulate((3, 1, 4))]
    assert [end - start for start, end in pairwise(packing.bounds.tolist())] == list(packing.lengths)


# --- the table of decisions ------------------------------------------------------------------------------------------

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "head_size", "expected"),
    [
        ("cpu", (0, 0), FP32, 64, "blocks"),
        ("cpu", (0, 0), BF16, 64, "blocks"),
        ("cuda", (7, 0), FP16, 64, "memory_efficient"),
        ("cuda", (7, 0), FP32, 64, "memory_efficient"),
        ("cuda", (7, 0), BF16, 64, "blocks"),
        ("cuda", (7, 5), FP16, 64, "memory_efficient"),
        ("cuda", (8, 0), FP16, 64, "flash"),
        ("cuda", (8, 0), BF16, 64, "flash"),
        ("cuda", (8, 0), FP32, 64, "memory_efficient"),
        ("cuda", (9, 0), BF16, 64, "flash"),
        ("cuda", (10, 0), BF16, 64, "flash"),
        ("cuda", (9, 0), BF16, 512, "memory_efficient"),
        ("cuda", (9, 0), BF16, 20, "blocks"),
        ("cuda", (9, 0), torch.float64, 64, "blocks"),
        ("cuda", (3, 7), FP32, 64, "blocks"),
    ],
)
def test_decisions(device: str, capability: tuple[int, int], dtype: torch.dtype, head_size: int, expected: str) -> None:
    assert choose_attention(Setting(device, capability, dtype, head_size)).implementation == expected


@pytest.mark.parametrize("rank", ["0", "1"])
def test_rank_0_says_once_what_a_gpu_takes(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU there is no choice."""
    module._say_once.cache_clear()
    monkeypatch.setenv("RANK", rank)
    for _ in range(3):
        assert module._settle(Setting("cuda", (8, 0), torch.bfloat16, 64), "") == "flash"
        assert module._settle(Setting("cpu", (0, 0), torch.float32, 64), "") == "blocks"
    module._say_once.cache_clear()
    said = "attention on sm_80 in bfloat16: flash (variable lengths without a mask, with any dropout)\n"
    assert capsys.readouterr().err == (said if rank == "0" else "")


def test_override_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing.of((2,))
    rows = make_rows(packing, packing, 1)
    seen = []
    monkeypatch.setitem(IMPLEMENTATIONS, "memory_efficient", lambda *arguments: seen.append(arguments[3]))
    monkeypatch.setenv("EARLYBERT_ATTENTION", "memory_efficient")
    packed_attention(*rows, packing, packing)
    assert seen == [packing]
    monkeypatch.setenv("EARLYBERT_ATTENTION", "fast")
    with pytest.raises(ValueError, match=r"EARLYBERT_ATTENTION is 'fast'; it must be one of blocks, flash, "):
        packed_attention(*rows, packing, packing)
