"""Wherever the network drops, what stays is scaled up by 1 / (1 - p), and only in training."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from earlybert.kernels.attention import LONGEST_PLAIN_ON_CPU
from earlybert.kernels.packing import Packing
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.layers import Attention, Embeddings, FeedForward
from tests.pretrain.small_models import small_config

PROBABILITY = 0.25
SCALE = 4 / 3
HIDDEN, HEADS, HEAD_SIZE = 32, 4, 8
# With it a LayerNorm only subtracts the mean and divides by a constant.
EPS = 1e12


def before_norm(normalised_TH: Tensor) -> Tensor:
    """What went into a LayerNorm of EPS, where the first of a row's elements was 0."""
    return (normalised_TH - normalised_TH[:, :1]) * EPS**0.5


def require_share_and_scale(ratio: Tensor) -> None:
    """All are 0 or 1 / (1 - p), the zeros about p of them."""
    kept = ratio[ratio.abs() > 1e-3]
    torch.testing.assert_close(kept, torch.full_like(kept, SCALE), rtol=1e-3, atol=0)
    deviation = (PROBABILITY * (1 - PROBABILITY) / ratio.numel()) ** 0.5
    assert abs(1 - kept.numel() / ratio.numel() - PROBABILITY) < 5 * deviation


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def test_embeddings() -> None:
    embeddings = Embeddings(small_config(hidden_dropout_prob=PROBABILITY))
    ids = torch.randint(101, (20, 40))
    arguments = ids, torch.zeros_like(ids), torch.arange(40).expand_as(ids)
    require_share_and_scale(embeddings.train()(*arguments) / embeddings.eval()(*arguments))


@torch.no_grad()
def test_output_of_a_sublayer() -> None:
    """It is 0, 1, 2, ... in every row, and so is the residual, which nothing drops."""
    sublayer = FeedForward(small_config(hidden_dropout_prob=PROBABILITY, layer_norm_eps=EPS), 48)
    counting_H = torch.arange(HIDDEN, dtype=torch.float32)
    nn.init.zeros_(sublayer.output.weight)
    sublayer.output.bias.copy_(counting_H)
    residual_TH = counting_H.expand(200, HIDDEN)
    still_TH, trained_TH = (before_norm(sublayer.train(mode)(residual_TH)) for mode in (False, True))
    torch.testing.assert_close(still_TH, 2 * residual_TH, rtol=1e-4, atol=1e-4)
    require_share_and_scale(((trained_TH - residual_TH) / counting_H)[:, 1:])


def packed(attention: Attention) -> Tensor:
    return attention.packed(torch.zeros(300, HIDDEN), Packing.of([1] * 300))


def needed(attention: Attention) -> Tensor:
    zeros_T, none = torch.zeros(300, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return attention.needed(torch.zeros(300, HIDDEN), Batch.of([1] * 300, zeros_T, zeros_T, none, none, zeros_T))


def padded(attention: Attention) -> Tensor:
    return attention.padded(torch.zeros(300, 1, HIDDEN), None).flatten(0, 1)


def padded_and_long(attention: Attention) -> Tensor:
    """Of every sequence only the first token can be seen."""
    length = LONGEST_PLAIN_ON_CPU + 1
    attended_BS = (torch.arange(length) == 0).expand(2, length)
    return attention.padded(torch.zeros(2, length, HIDDEN), attended_BS).flatten(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("way", [packed, needed, padded, padded_and_long])
def test_attention_weights(way: Callable[[Attention], Tensor]) -> None:
    """Who sees one token only gives it the weight 1: the head's context is its value, here 0, 1, 2 or 3."""
    attention = Attention(small_config(attention_probs_dropout_prob=PROBABILITY, layer_norm_eps=EPS), HEADS)
    values_H = torch.arange(HEADS, dtype=torch.float32).repeat_interleave(HEAD_SIZE)
    for linear in (attention.qkv, attention.output):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    attention.qkv.bias[2 * HIDDEN :] = values_H
    attention.output.weight.copy_(torch.eye(HIDDEN))
    still_TH, trained_TH = (before_norm(way(attention.train(mode))) for mode in (False, True))
    torch.testing.assert_close(still_TH, values_H.expand_as(still_TH), rtol=1e-4, atol=1e-4)
    weight_TA = (trained_TH / values_H)[:, HEAD_SIZE::HEAD_SIZE]
    require_share_and_scale(weight_TA)
