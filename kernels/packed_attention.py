"""Self-attention over packed sequences, for any number of heads: one definition, and the fastest way on each device.

Queries and keys are packed separately, so that only the positions that somebody needs have to ask.

Shape suffixes: M query rows, T key and value rows, A heads, D head size; inside a block of sequences: B sequences,
Q and K the longest number of queries and keys.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from earlybert.core.errors import UserError
from earlybert.kernels.dropout import keep_scale
from earlybert.kernels.packing import Packing

log = logging.getLogger(__name__)

OVERRIDE = "EARLYBERT_ATTENTION"
# Scores of a block of sequences on a CPU, in elements: more of them do not stay in a core's cache.
CPU_BLOCK = 1 << 18


def packed_attention_reference(
    query_MAD: Tensor, key_TAD: Tensor, value_TAD: Tensor, queries: Packing, keys: Packing, dropout: float = 0.0
) -> Tensor:
    """Attention as BERT defines it (Vaswani et al. 2017, Eq. 1), one sequence after the other.

    Query row i of a sequence sees all key rows of the same sequence; `queries` and `keys` say which rows those are.
    Returns the context, [M, A, D].
    """
    contexts = []
    for query_QAD, key_KAD, value_KAD in zip(
        query_MAD.split(queries.lengths), key_TAD.split(keys.lengths), value_TAD.split(keys.lengths), strict=True
    ):
        score_AQK = torch.einsum("qad,kad->aqk", query_QAD, key_KAD) * query_MAD.shape[-1] ** -0.5
        weight_AQK = F.dropout(score_AQK.softmax(dim=-1), dropout)
        contexts.append(torch.einsum("aqk,kad->qad", weight_AQK, value_KAD))
    return torch.cat(contexts)


@dataclass(frozen=True)
class Setting:
    """What decides which implementation computes; `capability` is CUDA's, and (0, 0) elsewhere."""

    device: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_size: int

    @property
    def fits_fused_kernels(self) -> bool:
        return self.head_size % 8 == 0 and self.dtype in (torch.float16, torch.bfloat16, torch.float32)


class Decision(NamedTuple):
    """A line of the table: who computes, when, and why."""

    implementation: str
    applies: Callable[[Setting], bool]
    why: str


# The first line that applies counts. cuDNN's kernel is not here: it takes dropout in multiples of 1/16 only. Nor is
# `torch.nn.attention.varlen`, which takes none.
DECISIONS = (
    Decision("blocks", lambda s: s.device != "cuda", "fastest on a CPU at any length up to 512"),
    Decision("blocks", lambda s: not s.fits_fused_kernels, "no fused kernel takes this dtype or head size"),
    Decision(
        "flash",
        lambda s: s.capability >= (8, 0) and s.dtype != torch.float32 and s.head_size <= 256,
        "variable lengths without a mask, with any dropout",
    ),
    Decision(
        "blocks",
        lambda s: s.capability < (8, 0) and s.dtype == torch.bfloat16,
        "no fused kernel takes bf16 before sm_80",
    ),
    Decision("blocks", lambda s: s.capability < (5, 0), "no fused kernel runs before sm_50"),
    Decision("memory_efficient", lambda s: True, "variable lengths without a mask where flash attention cannot run"),
)


def choose_attention(setting: Setting) -> Decision:
    """The table's line for a setting."""
    return next(decision for decision in DECISIONS if decision.applies(setting))


def packed_attention(
    query_MAD: Tensor, key_TAD: Tensor, value_TAD: Tensor, queries: Packing, keys: Packing, dropout: float = 0.0
) -> Tensor:
    """The fastest correct attention for where the tensors lie; arguments and result as `packed_attention_reference`.

    The environment variable EARLYBERT_ATTENTION names an implementation that is to be taken instead. Raises UserError
    when it names none.
    """
    name = _implementation(query_MAD.device, query_MAD.dtype, query_MAD.shape[-1])
    return IMPLEMENTATIONS[name](query_MAD, key_TAD, value_TAD, queries, keys, dropout)


@torch.compiler.assume_constant_result
def _implementation(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return _settle(Setting(device.type, capability, dtype, head_size), chosen())


def chosen() -> str:
    """What the environment asks for, "" where it leaves that to the table; raises UserError for an unknown name."""
    override = os.environ.get(OVERRIDE, "")
    if override and override not in IMPLEMENTATIONS:
        raise UserError(f"{OVERRIDE} is {override!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    return override


def _settle(setting: Setting, override: str) -> str:
    """The implementation's name: the override, else the table's, which is logged once."""
    if override:
        return override
    decision = choose_attention(setting)
    _say_once(decision, setting.device, setting.capability, setting.dtype)
    return decision.implementation


@cache
def _say_once(decision: Decision, device: str, capability: tuple[int, int], dtype: torch.dtype) -> None:
    place = f"sm_{capability[0]}{capability[1]}" if device == "cuda" else device
    name = str(dtype).removeprefix("torch.")
    log.info("attention on %s in %s: %s (%s)", place, name, decision.implementation, decision.why)


@dataclass(frozen=True)
class _Rows:
    """Rows of consecutive sequences, which a block of score matrices wants as one tensor."""

    first: int
    lengths: tuple[int, ...]

    @property
    def equal(self) -> bool:
        return min(self.lengths) == max(self.lengths)

    @property
    def place(self) -> slice:
        return slice(self.first, self.first + sum(self.lengths))

    def take(self, rows_xAD: Tensor) -> Tensor:
        """[B, A, longest, D]: a view where all lengths are equal, else a copy with zeros after shorter sequences."""
        rows_xAD = rows_xAD[self.place]
        if self.equal:
            return rows_xAD.unflatten(0, (len(self.lengths), -1)).transpose(1, 2)
        _, heads, head_size = rows_xAD.shape
        padded_BAxD = rows_xAD.new_zeros(len(self.lengths), heads, max(self.lengths), head_size)
        for padded_AxD, sequence_xAD in zip(padded_BAxD, rows_xAD.split(self.lengths), strict=True):
            padded_AxD[:, : len(sequence_xAD)] = sequence_xAD.transpose(0, 1)
        return padded_BAxD

    def put(self, target_xAD: Tensor, values_BAxD: Tensor) -> None:
        """The inverse of `take`."""
        values_BxAD = values_BAxD.transpose(1, 2)
        if not self.equal:
            values = [sequence[:length] for sequence, length in zip(values_BxAD, self.lengths, strict=True)]
            torch.cat(values, out=target_xAD[self.place])
        else:
            target_xAD[self.place].unflatten(0, (len(self.lengths), -1)).copy_(values_BxAD)

    def beyond(self, device: torch.device) -> Tensor:
        """[B, 1, 1, longest]: minus infinity after the end of shorter sequences, otherwise 0."""
        place_x = torch.arange(max(self.lengths), device=device)
        beyond_Bx = place_x >= torch.tensor(self.lengths, device=device)[:, None]
        return torch.zeros(beyond_Bx.shape, device=device).masked_fill_(beyond_Bx, -torch.inf)[:, None, None]


def _blocks(queries: Packing, keys: Packing, heads: int, limit: float) -> Iterator[tuple[_Rows, _Rows]]:
    """Cuts the batch into the queries and keys of blocks of at most `limit` padded scores, or of one sequence."""
    first, count = 0, len(keys.lengths)
    query_row = key_row = 0
    while first < count:
        last, query, key = first + 1, queries.lengths[first], keys.lengths[first]
        while last < count:
            query, key = max(query, queries.lengths[last]), max(key, keys.lengths[last])
            if (last + 1 - first) * heads * query * key > limit:
                break
            last += 1
        query_rows = _Rows(query_row, queries.lengths[first:last])
        key_rows = _Rows(key_row, keys.lengths[first:last])
        yield query_rows, key_rows
        first, query_row, key_row = last, query_rows.place.stop, key_rows.place.stop


class _BlockAttention(torch.autograd.Function):
    """Score matrices of one block of sequences at a time, with the gradient written out."""

    @staticmethod
    def forward(
        ctx: Any,
        query_MAD: Tensor,
        key_TAD: Tensor,
        value_TAD: Tensor,
        queries: Packing,
        keys: Packing,
        dropout: float,
    ) -> Tensor:
        heads, head_size = query_MAD.shape[1:]
        limit = CPU_BLOCK if query_MAD.device.type == "cpu" else float("inf")
        ctx.blocks, ctx.dropout = list(_blocks(queries, keys, heads, limit)), dropout
        context_MAD, saved = torch.empty_like(query_MAD, memory_format=torch.contiguous_format), []
        for query_rows, key_rows in ctx.blocks:
            query_BAQD = query_rows.take(query_MAD) * head_size**-0.5
            score_BAQK = query_BAQD @ key_rows.take(key_TAD).transpose(-1, -2)
            if not key_rows.equal:
                score_BAQK += key_rows.beyond(score_BAQK.device).to(score_BAQK.dtype)
            weight_BAQK = score_BAQK.softmax(dim=-1)
            saved.append(weight_BAQK)
            if dropout:
                scale_BAQK = _keep_scale(weight_BAQK, dropout)
                saved.append(scale_BAQK)
                weight_BAQK = weight_BAQK * scale_BAQK
            query_rows.put(context_MAD, weight_BAQK @ key_rows.take(value_TAD))
        ctx.save_for_backward(query_MAD, key_TAD, value_TAD, *saved)
        return context_MAD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_MAD, key_TAD, value_TAD, *saved = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(rows) for rows in (query_MAD, key_TAD, value_TAD))
        scale = query_MAD.shape[-1] ** -0.5
        remaining = iter(saved)
        for query_rows, key_rows in ctx.blocks:
            weight_BAQK = next(remaining)
            gradient_BAQD = query_rows.take(gradients[0])
            of_weight_BAQK = gradient_BAQD @ key_rows.take(value_TAD).transpose(-1, -2)
            kept_BAQK = weight_BAQK
            if ctx.dropout:
                scale_BAQK = next(remaining)
                kept_BAQK = weight_BAQK * scale_BAQK
                of_weight_BAQK.mul_(scale_BAQK)
            key_rows.put(of_value, kept_BAQK.transpose(-1, -2) @ gradient_BAQD)
            of_score_BAQK = torch._softmax_backward_data(of_weight_BAQK, weight_BAQK, -1, weight_BAQK.dtype)
            of_score_BAQK.mul_(scale)
            query_rows.put(of_query, of_score_BAQK @ key_rows.take(key_TAD))
            key_rows.put(of_key, of_score_BAQK.transpose(-1, -2) @ query_rows.take(query_MAD))
        return of_query, of_key, of_value, None, None, None


def _keep_scale(weight: Tensor, dropout: float) -> Tensor:
    if weight.device.type == "cpu":
        return keep_scale(weight.shape, dropout, weight.dtype)
    return F.dropout(torch.ones_like(weight), dropout)


# A graph of it would be one for these lengths alone.
@torch.compiler.disable
def _block_attention(
    query_MAD: Tensor, key_TAD: Tensor, value_TAD: Tensor, queries: Packing, keys: Packing, dropout: float
) -> Tensor:
    with torch.autocast(query_MAD.device.type, enabled=False):
        return _BlockAttention.apply(query_MAD, key_TAD, value_TAD, queries, keys, dropout)


def _flash_attention(
    query_MAD: Tensor, key_TAD: Tensor, value_TAD: Tensor, queries: Packing, keys: Packing, dropout: float
) -> Tensor:
    """FlashAttention 2 as PyTorch carries it; its public entry for variable lengths knows no dropout."""
    return torch.ops.aten._flash_attention_forward(
        query_MAD,
        key_TAD,
        value_TAD,
        queries.bounds,
        keys.bounds,
        queries.longest,
        keys.longest,
        dropout,
        False,  # causal
        False,  # debug mask
        scale=query_MAD.shape[-1] ** -0.5,
    )[0]


def _memory_efficient_attention(
    query_MAD: Tensor, key_TAD: Tensor, value_TAD: Tensor, queries: Packing, keys: Packing, dropout: float
) -> Tensor:
    """CUTLASS attention as PyTorch carries it: one batch entry that the bounds divide."""
    return torch.ops.aten._efficient_attention_forward(
        query_MAD[None],
        key_TAD[None],
        value_TAD[None],
        None,  # bias
        queries.bounds,
        keys.bounds,
        queries.longest,
        keys.longest,
        dropout,
        0,  # no mask
        compute_log_sumexp=torch.is_grad_enabled(),
        scale=query_MAD.shape[-1] ** -0.5,
    )[0][0]


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "blocks": _block_attention,
    "flash": _flash_attention,
    "memory_efficient": _memory_efficient_attention,
    "reference": packed_attention_reference,
}
