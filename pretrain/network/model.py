"""Post-LN BERT for pre-training, with a width of its own in every layer.

Heads and neurons are counted per layer; the hidden size and the head size are the same everywhere. With all units kept
and all coefficients 1 this is `transformers.BertForPreTraining`, weight for weight.

Shape suffixes: B sequences, S positions, T tokens of all sequences packed, M of them that the heads need, x any of
these (leading dimensions), H hidden size, A heads kept, D head size, V vocabulary rows, N predicted positions, I input
units, 3 = query, key, value.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from earlybert.kernels.attention import attention
from earlybert.kernels.cross_entropy import linear_cross_entropy
from earlybert.kernels.dropout import dropout
from earlybert.kernels.fold import fold_coefficients
from earlybert.kernels.gelu import linear, linear_gelu
from earlybert.kernels.layer_norm import dropout_residual_layer_norm
from earlybert.kernels.packed_attention import packed_attention
from earlybert.kernels.packing import Packing

VOCABULARY_MULTIPLE = 64


@strict
class EarlyBertConfig(PreTrainedConfig):
    """Shape of the full network, and which of its heads and neurons are there.

    `kept_heads[l]` and `kept_neurons[l]` are the sorted indices, in the full network, of what layer l holds; None keeps
    everything. `searching` adds one coefficient per head and neuron.
    """

    model_type = "earlybert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    next_sentence: bool = True
    searching: bool = False
    kept_heads: list[list[int]] | None = None
    kept_neurons: list[list[int]] | None = None
    ticket_sha256: str | None = None

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: the vocabulary rounded up to a multiple of 64."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def heads(self) -> list[int]:
        """Number of heads in each layer."""
        if self.kept_heads is None:
            return [self.num_attention_heads] * self.num_hidden_layers
        return [len(kept) for kept in self.kept_heads]

    @property
    def neurons(self) -> list[int]:
        """Number of neurons in each layer."""
        if self.kept_neurons is None:
            return [self.intermediate_size] * self.num_hidden_layers
        return [len(kept) for kept in self.kept_neurons]


@dataclass(frozen=True)
class PackedPlaces:
    """Where the tokens of a padded batch [B, S] go when its padding is left out, and which of them the heads need.

    `token_rows_T`: places of the tokens in the flattened B*S; `tokens` divides these T rows into sequences.
    `needed_rows_M`: rows of T whose last hidden state is needed, the first of every sequence among them; `needed`
    divides them likewise. `predicted_rows_N` and `first_rows_B`: rows of M that the two heads read. All int64.
    """

    tokens: Packing
    token_rows_T: Tensor
    needed: Packing
    needed_rows_M: Tensor
    predicted_rows_N: Tensor
    first_rows_B: Tensor

    @staticmethod
    def of(attention_mask_BS: Tensor, masked_positions_N: Tensor) -> "PackedPlaces":
        """For sequences of at least one token; positions are indices into the flattened B*S. To be made on the CPU."""
        attended_BS = attention_mask_BS.bool()
        token_rows_T = attended_BS.flatten().nonzero().flatten()
        tokens = Packing.of(attended_BS.sum(1).tolist())
        first_T = tokens.bounds[:-1].long()
        predicted_T = torch.searchsorted(token_rows_T, masked_positions_N)
        needed_rows_M = torch.cat((first_T, predicted_T)).unique()
        needed_bounds = torch.searchsorted(needed_rows_M, tokens.bounds.long())
        return PackedPlaces(
            tokens=tokens,
            token_rows_T=token_rows_T,
            needed=Packing.of(needed_bounds.diff().tolist()),
            needed_rows_M=needed_rows_M,
            predicted_rows_N=torch.searchsorted(needed_rows_M, predicted_T),
            first_rows_B=torch.searchsorted(needed_rows_M, first_T),
        )

    def to(self, device: torch.device) -> "PackedPlaces":
        return PackedPlaces(
            self.tokens.to(device),
            self.token_rows_T.to(device, non_blocking=True),
            self.needed.to(device),
            self.needed_rows_M.to(device, non_blocking=True),
            self.predicted_rows_N.to(device, non_blocking=True),
            self.first_rows_B.to(device, non_blocking=True),
        )


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config: EarlyBertConfig) -> None:
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

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_probability = config.hidden_dropout_prob

    def forward(self, output_xH: Tensor, residual_xH: Tensor) -> Tensor:  # type: ignore[override]
        probability = self.dropout_probability if self.training else 0.0
        return dropout_residual_layer_norm(output_xH, None, residual_xH, self.weight, self.bias, probability, self.eps)


class Attention(nn.Module):
    """Self-attention of the kept heads, output projection, dropout, residual, LayerNorm."""

    def __init__(self, config: EarlyBertConfig, heads: int) -> None:
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

    def needed(self, hidden_TH: Tensor, places: PackedPlaces) -> Tensor:
        """Only the needed rows, [M, H]: these ask, all tokens answer."""
        hidden_MH = hidden_TH[places.needed_rows_M]
        (query_MAD,) = self.heads(self.qkv(hidden_MH, 0, 1), 1)
        key_TAD, value_TAD = self.heads(self.qkv(hidden_TH, 1, 3), 2)
        context_MAD = packed_attention(query_MAD, key_TAD, value_TAD, places.needed, places.tokens, self.dropout)
        return self.LayerNorm(self.output(context_MAD.flatten(-2)), hidden_MH)


class FeedForward(nn.Module):
    """Kept neurons, GELU, output projection, dropout, residual, LayerNorm."""

    def __init__(self, config: EarlyBertConfig, neurons: int) -> None:
        super().__init__()
        self.intermediate = LinearGelu(config.hidden_size, neurons)
        self.output = CoefficientLinear(neurons, config.hidden_size, neurons if config.searching else None)
        self.LayerNorm = ResidualLayerNorm(config)

    def forward(self, hidden_xH: Tensor) -> Tensor:
        return self.LayerNorm(self.output(self.intermediate(hidden_xH)), hidden_xH)


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self, config: EarlyBertConfig, heads: int, neurons: int) -> None:
        super().__init__()
        self.attention = Attention(config, heads)
        self.feed_forward = FeedForward(config, neurons)


class MaskedTokenTransform(nn.Module):
    """Dense, GELU and LayerNorm before the vocabulary matrix, and the vocabulary's bias."""

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def forward(self, hidden_xH: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the transformed states, [..., H], and the bias, [V], which is minus infinity on padding rows."""
        padding_V = torch.arange(self.bias.shape[0], device=self.bias.device) >= self.vocab_size
        return self.LayerNorm(F.gelu(self.dense(hidden_xH))), self.bias.masked_fill(padding_V, -torch.inf)


@dataclass
class EarlyBertOutput(ModelOutput):
    """Scores of a forward pass.

    `prediction_logits`: [N, V] for the positions asked for, else [B, S, V]; rows of the padded vocabulary are -inf.
    `masked_loss`, `masked_correct`: with labels, in place of the logits: cross-entropy summed over the predicted
    positions, in nats, and how many were predicted right.
    `seq_relationship_logits`: [B, 2], is-next first; None without next-sentence prediction.
    `head_penalty`, `neuron_penalty`: L1 norms of all head and neuron coefficients, fp32 scalars; None unless searching.
    """

    prediction_logits: Tensor | None = None
    masked_loss: Tensor | None = None
    masked_correct: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    head_penalty: Tensor | None = None
    neuron_penalty: Tensor | None = None


class EarlyBertEncoder(PreTrainedModel):
    """Embeddings and layers, and which heads and neurons those hold: what every model with a head on it begins with."""

    config_class = EarlyBertConfig
    base_model_prefix = ""
    config: EarlyBertConfig

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            Layer(config, heads, neurons) for heads, neurons in zip(config.heads, config.neurons, strict=True)
        )

    @property
    def encoder_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states, [B, S, H], of token ids [B, S]; `attention_mask` [B, S] is 0 on padding."""
        attended_BS = None if attention_mask is None else attention_mask.bool()
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        position_ids_S = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_BSH = self.embeddings(input_ids, token_type_ids, position_ids_S)
        for layer in self.encoder_layers:
            hidden_BSH = layer.feed_forward(layer.attention.padded(hidden_BSH, attended_BS))
        return hidden_BSH

    def encode_needed(self, input_ids: Tensor, token_type_ids: Tensor, places: PackedPlaces) -> Tensor:
        """Last hidden states of the needed rows only, [M, H]: the same as `encode` has there, without the padding.

        The last layer computes no other rows. Ids are [B, S].
        """
        rows_T = places.token_rows_T
        position_ids_T = rows_T % input_ids.shape[1]
        hidden_TH = self.embeddings(input_ids.flatten()[rows_T], token_type_ids.flatten()[rows_T], position_ids_T)
        *inner, last = self.encoder_layers
        for layer in inner:
            hidden_TH = layer.feed_forward(layer.attention.packed(hidden_TH, places.tokens))
        return last.feed_forward(last.attention.needed(hidden_TH, places))

    def penalties(self) -> dict[str, Tensor]:
        """While searching, the last forward pass's L1 norms of all head and neuron coefficients, fp32 scalars."""
        if not self.config.searching:
            return {}
        return {
            "head_penalty": total_penalty([layer.attention.output for layer in self.encoder_layers]),
            "neuron_penalty": total_penalty([layer.feed_forward.output for layer in self.encoder_layers]),
        }


class EarlyBertForPreTraining(EarlyBertEncoder):
    """Encoder, masked-token head tied to the word embeddings, and (if the config says so) next-sentence head."""

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__(config)
        self.masked_token = MaskedTokenTransform(config)
        if config.next_sentence:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            self.next_sentence = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @property
    def decoder_weight(self) -> nn.Parameter:
        """What scores the vocabulary, [V, H]: the embedding table itself, so the two cannot come untied."""
        return cast(nn.Parameter, self.embeddings.word_embeddings.weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        masked_labels: Tensor | None = None,
        places: PackedPlaces | None = None,
    ) -> EarlyBertOutput:
        """Scores; with `masked_positions` (indices into the B*S flattened positions, [N]) only at those positions.

        `masked_labels`, [N], has the loss computed in place of the scores. `places`, made of this mask and these
        positions, has only the real tokens computed.
        """
        if places is None:
            hidden_BSH = self.encode(input_ids, attention_mask, token_type_ids)
            predicted_xH = hidden_BSH if masked_positions is None else hidden_BSH.flatten(0, 1)[masked_positions]
            first_BH = hidden_BSH[:, 0]
        else:
            token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            hidden_MH = self.encode_needed(input_ids, token_type_ids, places)
            predicted_xH, first_BH = hidden_MH[places.predicted_rows_N], hidden_MH[places.first_rows_B]
        output = EarlyBertOutput(**self.penalties())
        predicted_xH, bias_V = self.masked_token(predicted_xH)
        if masked_labels is None:
            output.prediction_logits = F.linear(predicted_xH, self.decoder_weight, bias_V)
        else:
            output.masked_loss, output.masked_correct = linear_cross_entropy(
                predicted_xH, self.decoder_weight, bias_V, masked_labels
            )
        if self.config.next_sentence:
            output.seq_relationship_logits = self.next_sentence(torch.tanh(self.pooler(first_BH)))
        return output


AutoConfig.register("earlybert", EarlyBertConfig)
AutoModelForPreTraining.register(EarlyBertConfig, EarlyBertForPreTraining)
