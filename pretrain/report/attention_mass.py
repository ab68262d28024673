"""Where a trained network's attention goes: on neighbouring tokens and on [CLS] (what StackingBERT's growth rests on).

Shape suffixes: B sequences, S positions, A heads, D head size, 3 = query, key, value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.model import PreTrainingNetwork

NEIGHBOURHOOD = 2


def attention_weights(qkv_BSI: Tensor, attended_BS: Tensor, head_size: int) -> Tensor:
    """Softmax of the scaled scores, [B, A, S, S], fp32; the keys are the last axis."""
    query_BASD, key_BASD, _ = qkv_BSI.float().unflatten(-1, (3, -1, head_size)).permute(2, 0, 3, 1, 4)
    score_BASS = query_BASD @ key_BASD.transpose(-1, -2) * head_size**-0.5
    return score_BASS.masked_fill(~attended_BS[:, None, None, :], -torch.inf).softmax(dim=-1)


@dataclass(frozen=True)
class AttentionMass:
    """Per layer the share of attention on keys within two positions ("near", itself included) and on [CLS] ("cls").

    `uniform` is what evenly spread attention would give. Measured on `samples` sequences of at most `length` tokens.
    """

    shares: Mapping[str, Sequence[float]]
    uniform: Mapping[str, float]
    samples: int
    length: int

    def content(self) -> dict[str, Any]:
        """In report.json."""
        return {**self.shares, "uniform": self.uniform, "samples": self.samples, "length": self.length}


@torch.no_grad()
def attention_mass(model: PreTrainingNetwork, batch: Batch, length: int) -> AttentionMass:
    """Measures a batch of sequences that were prepared for a length.

    Means over heads and over the queries that are tokens. The two kinds of keys overlap for the first queries.
    """
    padded = batch.padded(model.config.pad_token_id or 0)
    attended_BS = padded["attention_mask"].bool()
    position_S = torch.arange(attended_BS.shape[1])
    near_SS = (position_S[:, None] - position_S[None, :]).abs() <= NEIGHBOURHOOD
    cls_SS = (position_S == 0).expand_as(near_SS)
    keys = {"near": near_SS, "cls": cls_SS}
    shares: dict[str, list[float]] = {name: [] for name in keys}

    def share(weight_BASS: Tensor, keys_SS: Tensor) -> float:
        mass_BAS = (weight_BASS * keys_SS).sum(-1)
        return float(mass_BAS.mean(1)[attended_BS].mean())

    def look(module: torch.nn.Module, inputs: Any, qkv_BSI: Tensor) -> None:
        weight_BASS = attention_weights(qkv_BSI, attended_BS, model.config.head_size)
        for name, keys_SS in keys.items():
            shares[name].append(share(weight_BASS, keys_SS))

    hooks = [layer.attention.qkv.register_forward_hook(look) for layer in model.encoder_layers]
    try:
        model.eval().encode_padded(**padded)
    finally:
        for hook in hooks:
            hook.remove()
    even_B1SS = (attended_BS / attended_BS.sum(1, keepdim=True))[:, None, None, :].expand(-1, 1, len(position_S), -1)
    uniform = {name: share(even_B1SS, keys_SS) for name, keys_SS in keys.items()}
    return AttentionMass(shares, uniform, len(attended_BS), length)
