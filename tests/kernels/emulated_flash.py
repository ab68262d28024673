"""PyTorch's variable-length FlashAttention for CPU tensors, so that a CPU can take a GPU's way through the network.

Shape suffixes: M query rows, T key rows, A heads, D head size; of one sequence: Q queries, K keys.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def _sequences(query_MAD: Tensor, key_TAD: Tensor, rest: tuple[Any, ...], seed: Tensor) -> Iterator[tuple[Any, ...]]:
    """Of each sequence its rows, its attention weights before dropout, and what dropout multiplies them with."""
    query_bounds, key_bounds, _, _, dropout = rest[:5]
    generator = torch.Generator().manual_seed(int(seed.view(torch.int64)[0]))
    query_borders, key_borders = (pairwise(bounds.tolist()) for bounds in (query_bounds, key_bounds))
    for query_border, key_border in zip(query_borders, key_borders, strict=True):
        queries, keys = slice(*query_border), slice(*key_border)
        score_AQK = (
            torch.einsum("qad,kad->aqk", query_MAD[queries].float(), key_TAD[keys].float())
            * query_MAD.shape[-1] ** -0.5
        )
        kept_AQK = torch.rand(score_AQK.shape, generator=generator) >= dropout
        yield queries, keys, score_AQK.softmax(-1), kept_AQK / (1 - dropout)


def _forward(query_MAD: Tensor, key_TAD: Tensor, value_TAD: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
    seed, context_MAD = torch.randint(2**62, (2,)).view(torch.uint64), torch.empty_like(query_MAD)
    for queries, keys, weight_AQK, scale_AQK in _sequences(query_MAD, key_TAD, rest, seed):
        context_MAD[queries] = torch.einsum("aqk,kad->qad", weight_AQK * scale_AQK, value_TAD[keys].float())
    log_sum_AM = query_MAD.new_zeros(query_MAD.shape[1::-1], dtype=torch.float32)
    return context_MAD, log_sum_AM, seed, torch.empty((), dtype=torch.uint64), query_MAD.new_empty(0)


def _backward(
    gradient_MAD: Tensor,
    query_MAD: Tensor,
    key_TAD: Tensor,
    value_TAD: Tensor,
    out: Tensor,
    log_sum: Tensor,
    *rest: Any,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = (torch.empty_like(rows) for rows in (query_MAD, key_TAD, value_TAD))
    factor = query_MAD.shape[-1] ** -0.5
    for queries, keys, weight_AQK, scale_AQK in _sequences(query_MAD, key_TAD, rest, seed=rest[6]):
        gradient_QAD = gradient_MAD[queries].float()
        of_value[keys] = torch.einsum("aqk,qad->kad", weight_AQK * scale_AQK, gradient_QAD)
        of_weight_AQK = torch.einsum("qad,kad->aqk", gradient_QAD, value_TAD[keys].float()) * scale_AQK
        of_score_AQK = factor * weight_AQK * (of_weight_AQK - (of_weight_AQK * weight_AQK).sum(-1, keepdim=True))
        of_query[queries] = torch.einsum("aqk,kad->qad", of_score_AQK, key_TAD[keys].float())
        of_key[keys] = torch.einsum("aqk,qad->kad", of_score_AQK, query_MAD[queries].float())
    return of_query, of_key, of_value


def register() -> torch.library.Library:
    """Makes `_flash_attention_forward` and its backward pass work on CPU tensors until the result is destroyed."""
    registered = torch.library.Library("aten", "IMPL")
    registered.impl("_flash_attention_forward", _forward, "CPU")
    registered.impl("_flash_attention_backward", _backward, "CPU")
    return registered
