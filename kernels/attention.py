"""Self-attention over a fused query-key-value projection, for any number of heads.

Shape suffixes: B sequences, S positions, A heads, D head size, 3 = query, key, value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this length the plain matrix products beat the fused CPU kernel, whose backward pass is about four times slower.
LONGEST_PLAIN_ON_CPU = 256


def attention_reference(qkv_BS3AD: Tensor, attended_BS: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention as BERT defines it (Vaswani et al. 2017, Eq. 1), score matrix and all.

    `attended_BS` is True where a position holds a token; None means everywhere. Returns the context, [B, S, A, D].
    """
    query_BASD, key_BASD, value_BASD = qkv_BS3AD.permute(2, 0, 3, 1, 4)
    score_BASS = query_BASD @ key_BASD.transpose(-1, -2) * qkv_BS3AD.shape[-1] ** -0.5
    if attended_BS is not None:
        score_BASS = score_BASS.masked_fill(~attended_BS[:, None, None, :], torch.finfo(score_BASS.dtype).min)
    weight_BASS = F.dropout(score_BASS.softmax(dim=-1), dropout)
    return (weight_BASS @ value_BASD).transpose(1, 2)


def attention(qkv_BS3AD: Tensor, attended_BS: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The fastest correct attention for where the tensor lies; arguments and result as `attention_reference`."""
    if qkv_BS3AD.device.type == "cpu" and qkv_BS3AD.shape[1] <= LONGEST_PLAIN_ON_CPU:
        return attention_reference(qkv_BS3AD, attended_BS, dropout)
    query_BASD, key_BASD, value_BASD = qkv_BS3AD.permute(2, 0, 3, 1, 4)
    mask_B11S = None if attended_BS is None else attended_BS[:, None, None, :]
    context_BASD = F.scaled_dot_product_attention(
        query_BASD, key_BASD, value_BASD, attn_mask=mask_B11S, dropout_p=dropout
    )
    return context_BASD.transpose(1, 2)
