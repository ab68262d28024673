"""The layers of post-LN BERT, with a width of their own, and the masked-token head.

Shape suffixes: B sequences, S positions, T tokens of all sequences packed, M of them that the heads need, x any of
these (leading dimensions), H hidden size, A heads kept, D head size, V vocabulary rows, I input units, 3 = query, key,
value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlybert.kernels.attention import attention
from earlybert.kernels.dropout import dropout
from earlybert.kernels.fold import fold_coefficients
from earlybert.kernels.gelu import linear, linear_gelu
from earlybert.kernels.layer_norm import dropout_residual_layer_norm
from earlybert.kernels.packed_attention import packed_attention
from earlybert.kernels.packing import Packing
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_probability = config.hidden_dropout_prob

    def forward(self, input_ids_x: Tensor, token_type_ids_x: Tensor, position_ids_x: Tensor) -> Tensor:
        embedding_xH = self.word_embeddings(input_ids_x) + self.token_type_embeddings(token_type_ids_x)
        embedding_xH = self.LayerNorm(embedding_xH + self.position_embeddings(position_ids_x))
        return dropout(embedding_xH, self.dropout_probability if self.training else 0.0)


class QueryKeyValue(nn.Linear):
    """One projection for query, key and value, rows in this order, [3 A D, H]."""

    def forward(self, hidden_xH: Tensor, first: int = 0, last: int = 3) -> Tensor:
        """Those of query, key and value from `first` on and before `last`, beside each other."""
        # A key bias adds the same number to all scores of a query, which softmax ignores: its true gradient is zero.
        # What rounding leaves of it, Adam's normalisation would blow up to full steps that differ in every layout.
        query, key, value = self.bias.chunk(3)
        bias = torch.cat((query, key.detach(), value))
        if last - first == 3:
            # The gradient of a slice is written into zeros as large as the weight, also when it is all of it.
            return F.linear(hidden_xH, self.weight, bias)
        rows = slice(first * len(query), last * len(query))
        return F.linear(hidden_xH, self.weight[rows], bias[rows])


class CoefficientLinear(nn.Linear):
    """Linear layer whose input units, in equal groups, carry one learnable coefficient each while searching."""

    def __init__(self, in_features: int, out_features: int, num_coefficients: int | None) -> None:
        super().__init__(in_features, out_features)
        self.coefficients = None if num_coefficients is None else nn.Parameter(torch.ones(num_coefficients))
        self.penalty = torch.zeros(())

    def forward(self, unit_xI: Tensor) -> Tensor:
        if self.coefficients is None:
            return linear(unit_xI, self.weight, self.bias)
        # One fp32 copy for both uses: their gradients are summed in fp32 and rounded once. The L1 norm is taken here
        # because under ZeRO-3 a parameter is whole only inside its own module's forward pass.
        coefficient = self.coefficients.float()
        self.penalty = coefficient.abs().sum()
        return linear(unit_xI, fold_coefficients(self.weight, coefficient), self.bias)


def total_penalty(modules: list[CoefficientLinear]) -> Tensor:
    """Sum of |c| over all coefficients of these modules' last forward pass, fp32 scalar."""
    return torch.stack([module.penalty for module in modules]).sum()


class LinearGelu(nn.Linear):
    """Linear layer and GELU in one."""

    def forward(self, hidden_xH: Tensor) -> Tensor:
        return linear_gelu(hidden_xH, self.weight, self.bias)


class ResidualLayerNorm(nn.LayerNorm):
    """Dropout of a sublayer's output, sum with what went into it, LayerNorm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_probability = config.hidden_dropout_prob

    def forward(self, output_xH: Tensor, residual_xH: Tensor) -> Tensor:  # type: ignore[override]
        probability = self.dropout_probability if self.training else 0.0
        return dropout_residual_layer_norm(output_xH, residual_xH, self.weight, self.bias, probability, self.eps)


class Attention(nn.Module):
    """Self-attention of the kept heads, output projection, dropout, residual, LayerNorm."""

    def __init__(self, config: NetworkConfig, heads: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout_probability = config.attention_probs_dropout_prob
        width = heads * config.head_size
        self.qkv = QueryKeyValue(config.hidden_size, 3 * width)
        self.output = CoefficientLinear(width, config.hidden_size, heads if config.searching else None)
        self.LayerNorm = ResidualLayerNorm(config)

    @property
    def dropout(self) -> float:
        return self.dropout_probability if self.training else 0.0

    def heads(self, projection_xI: Tensor, count: int) -> tuple[Tensor, ...]:
        """`count` of query, key and value, [..., A, D] each, as views of their common projection."""
        return projection_xI.unflatten(-1, (count, -1, self.head_size)).unbind(-3)

    def padded(self, hidden_BSH: Tensor, attended_BS: Tensor | None) -> Tensor:
        """All positions of a padded batch."""
        qkv_BS3AD = self.qkv(hidden_BSH).unflatten(-1, (3, -1, self.head_size))
        context_BSI = attention(qkv_BS3AD, attended_BS, self.dropout).flatten(-2)
        return self.LayerNorm(self.output(context_BSI), hidden_BSH)

    def packed(self, hidden_TH: Tensor, tokens: Packing) -> Tensor:
        """All tokens of a packed batch."""
        query_TAD, key_TAD, value_TAD = self.heads(self.qkv(hidden_TH), 3)
        context_TAD = packed_attention(query_TAD, key_TAD, value_TAD, tokens, tokens, self.dropout)
        return self.LayerNorm(self.output(context_TAD.flatten(-2)), hidden_TH)

    def needed(self, hidden_TH: Tensor, batch: Batch) -> Tensor:
        """Only the needed rows, [M, H]: these ask, all tokens answer."""
        hidden_MH = hidden_TH[batch.needed_rows_M]
        (query_MAD,) = self.heads(self.qkv(hidden_MH, 0, 1), 1)
        key_TAD, value_TAD = self.heads(self.qkv(hidden_TH, 1, 3), 2)
        context_MAD = packed_attention(query_MAD, key_TAD, value_TAD, batch.needed, batch.tokens, self.dropout)
        return self.LayerNorm(self.output(context_MAD.flatten(-2)), hidden_MH)


class FeedForward(nn.Module):
    """Kept neurons, GELU, output projection, dropout, residual, LayerNorm."""

    def __init__(self, config: NetworkConfig, neurons: int) -> None:
        super().__init__()
        self.intermediate = LinearGelu(config.hidden_size, neurons)
        self.output = CoefficientLinear(neurons, config.hidden_size, neurons if config.searching else None)
        self.LayerNorm = ResidualLayerNorm(config)

    def forward(self, hidden_xH: Tensor) -> Tensor:
        return self.LayerNorm(self.output(self.intermediate(hidden_xH)), hidden_xH)


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self, config: NetworkConfig, heads: int, neurons: int) -> None:
        super().__init__()
        self.attention = Attention(config, heads)
        self.feed_forward = FeedForward(config, neurons)


class MaskedTokenTransform(nn.Module):
    """Dense, GELU and LayerNorm before the vocabulary matrix, and the vocabulary's bias."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def forward(self, hidden_xH: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the transformed states, [..., H], and the bias, [V], which is minus infinity on padding rows."""
        padding_V = torch.arange(self.bias.shape[0], device=self.bias.device) >= self.vocab_size
        return self.LayerNorm(F.gelu(self.dense(hidden_xH))), self.bias.masked_fill(padding_V, -torch.inf)
