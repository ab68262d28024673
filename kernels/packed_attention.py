"""Self-attention over packed sequences, for any number of heads: one definition, and the fastest way on each device.

Queries and keys are packed separately, so that only the positions that somebody needs have to ask.

Shape suffixes: M query rows, T key and value rows, x either of them, A heads, D head size, B sequences, R the rows of
each head, P these and the padding; inside a block of sequences: G heads of its sequences, Q and K the longest number of
queries and keys.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.core.ranks import rank
from earlybert.kernels.dropout import keep_scale
from earlybert.kernels.packing import Packing
from earlybert.kernels.sizes import CPU_BLOCK

OVERRIDE = "EARLYBERT_ATTENTION"


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
    """The implementation's name: the override, else the table's, which is said once on a GPU."""
    if override:
        return override
    decision = choose_attention(setting)
    if setting.device == "cuda":
        _say_once(decision, setting.capability, setting.dtype)
    return decision.implementation


@cache
def _say_once(decision: Decision, capability: tuple[int, int], dtype: torch.dtype) -> None:
    place, name = "sm_{}{}".format(*capability), str(dtype).removeprefix("torch.")
    say(f"attention on {place} in {name}: {decision.implementation} ({decision.why})", enabled=rank() == 0)


class _Layout:
    """How the rows of packed sequences lie in blocks of padded ones, [G, longest, D].

    The blocks are parts of one tensor, [P, D], so one index copies all rows there and one copies them back.
    """

    def __init__(self, lengths: tuple[int, ...], counts: list[int], heads: int, device: torch.device) -> None:
        """`counts`: how many sequences each block has."""
        blocks = [lengths[last - count : last] for count, last in zip(counts, accumulate(counts), strict=True)]
        self.heads = heads
        self.shapes = [(heads * len(block), max(block)) for block in blocks]
        self.masks_G1x = [_mask(block, heads, device) for block in blocks]
        length_B, longest_B = torch.tensor(lengths), torch.tensor([max(block) for block in blocks for _ in block])
        begin_B = heads * (longest_B.cumsum(0) - longest_B)
        begin_T, longest_T = (each.repeat_interleave(length_B) for each in (begin_B, longest_B))
        position_T = torch.cat([torch.arange(length) for length in lengths])
        place_TA = (begin_T + position_T)[:, None] + longest_T[:, None] * torch.arange(heads)
        row_P = torch.full((heads * int(longest_B.sum()),), -1)
        row_P[place_TA.flatten()] = torch.arange(place_TA.numel())
        self.place_R = place_TA.flatten().to(device)
        self.row_P = row_P.clamp(min=0).to(device)
        self.beyond = (row_P < 0).nonzero().squeeze(1).to(device)

    def spread(self, rows_xAD: Tensor) -> Tensor:
        """[P, D], with zeros after shorter sequences."""
        rows_PD = rows_xAD.flatten(0, 1).index_select(0, self.row_P)
        return rows_PD.index_fill_(0, self.beyond, 0.0) if len(self.beyond) else rows_PD

    def collect(self, rows_PD: Tensor) -> Tensor:
        """The inverse of `spread`."""
        return rows_PD.index_select(0, self.place_R).unflatten(0, (-1, self.heads))

    def blocks(self, rows_PD: Tensor) -> list[Tensor]:
        """The parts of what `spread` gives, [G, longest, D] each."""
        parts = rows_PD.split([groups * longest for groups, longest in self.shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]


def _mask(lengths: tuple[int, ...], heads: int, device: torch.device) -> Tensor | None:
    """[G, 1, longest]: minus infinity after the end of shorter sequences, otherwise 0; None where none is shorter."""
    beyond_Bx = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    if not beyond_Bx.any():
        return None
    mask_Bx = torch.zeros(beyond_Bx.shape).masked_fill_(beyond_Bx, -torch.inf)
    return mask_Bx.repeat_interleave(heads, 0)[:, None].to(device)


@lru_cache(maxsize=32)
def _layouts(
    query_lengths: tuple[int, ...], key_lengths: tuple[int, ...], heads: int, limit: float, device: torch.device
) -> tuple[_Layout, _Layout]:
    """Of queries and keys, in blocks of at most `limit` padded scores, or of one sequence.

    Remembered, because all layers with so many heads have the same.
    """
    counts, first = list[int](), 0
    while first < len(key_lengths):
        last, query, key = first + 1, query_lengths[first], key_lengths[first]
        while last < len(key_lengths):
            query, key = max(query, query_lengths[last]), max(key, key_lengths[last])
            if (last + 1 - first) * heads * query * key > limit:
                break
            last += 1
        counts.append(last - first)
        first = last
    return _Layout(query_lengths, counts, heads, device), _Layout(key_lengths, counts, heads, device)


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
        asking, asked = ctx.layouts = _layouts(queries.lengths, keys.lengths, heads, limit, query_MAD.device)
        ctx.dropout, ctx.scale = dropout, head_size**-0.5
        query_PD = asking.spread(query_MAD) * ctx.scale
        key_PD, value_PD = asked.spread(key_TAD), asked.spread(value_TAD)
        context_PD, saved = torch.empty_like(query_PD), []
        for query_GQD, key_GKD, value_GKD, context_GQD, mask_G1K in zip(
            asking.blocks(query_PD),
            asked.blocks(key_PD),
            asked.blocks(value_PD),
            asking.blocks(context_PD),
            asked.masks_G1x,
            strict=True,
        ):
            weight_GQK = _softmax(query_GQD @ key_GKD.mT, mask_G1K)
            saved.append(weight_GQK)
            if dropout:
                saved.append(_keep_scale(weight_GQK, dropout))
                weight_GQK = weight_GQK * saved[-1]
            torch.bmm(weight_GQK, value_GKD, out=context_GQD)
        ctx.save_for_backward(query_PD, key_PD, value_PD, *saved)
        return asking.collect(context_PD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        asking, asked = ctx.layouts
        query_PD, key_PD, value_PD, *saved = ctx.saved_tensors
        gradient_PD = asking.spread(gradients[0])
        of_query_PD, of_key_PD, of_value_PD = (torch.empty_like(rows) for rows in (query_PD, key_PD, value_PD))
        remaining = iter(saved)
        for query_GQD, gradient_GQD, of_query_GQD, key_GKD, value_GKD, of_key_GKD, of_value_GKD in zip(
            *map(asking.blocks, (query_PD, gradient_PD, of_query_PD)),
            *map(asked.blocks, (key_PD, value_PD, of_key_PD, of_value_PD)),
            strict=True,
        ):
            weight_GQK = next(remaining)
            of_weight_GQK, kept_GQK = gradient_GQD @ value_GKD.mT, weight_GQK
            if ctx.dropout:
                scale_GQK = next(remaining)
                kept_GQK = weight_GQK * scale_GQK
                of_weight_GQK.mul_(scale_GQK)
            torch.bmm(kept_GQK.mT, gradient_GQD, out=of_value_GKD)
            of_score_GQK = torch._softmax_backward_data(of_weight_GQK, weight_GQK, -1, weight_GQK.dtype)
            torch.bmm(of_score_GQK, key_GKD, out=of_query_GQD)
            torch.bmm(of_score_GQK.mT, query_GQD, out=of_key_GKD)
        of_query_PD.mul_(ctx.scale)
        of_keys = asked.collect(of_key_PD), asked.collect(of_value_PD)
        return asking.collect(of_query_PD), *of_keys, None, None, None


def _softmax(score_GQK: Tensor, mask_G1K: Tensor | None) -> Tensor:
    """Weights of each sequence's own keys, in the precision of the scores.

    In between it is fp32 at least: PyTorch's half-precision softmax on a CPU takes three times as long where the number
    of keys is no multiple of its vectors.
    """
    score_GQK, dtype = score_GQK.to(torch.promote_types(score_GQK.dtype, torch.float32)), score_GQK.dtype
    if mask_G1K is not None:
        score_GQK += mask_G1K
    return score_GQK.softmax(dim=-1).to(dtype)


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
