"""Post-LN BERT for pre-training, with a width of its own in every layer.

Heads and neurons are counted per layer; the hidden size and the head size are the same everywhere. With all units kept
and all coefficients 1 this is `transformers.BertForPreTraining`, weight for weight.

Shape suffixes: B sequences, S positions, H hidden size, A heads kept, D head size, F neurons kept, V vocabulary rows,
N predicted positions, 3 = query, key, value.
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
from earlybert.kernels.fold import fold_coefficients

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


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BS: Tensor, token_type_ids_BS: Tensor) -> Tensor:
        position_S = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)
        embedding_BSH = self.word_embeddings(input_ids_BS) + self.token_type_embeddings(token_type_ids_BS)
        embedding_BSH = embedding_BSH + self.position_embeddings(position_S)
        return self.dropout(self.LayerNorm(embedding_BSH))


class QueryKeyValue(nn.Linear):
    """One projection for query, key and value, rows in this order, [3 A D, H]."""

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        # A key bias adds the same number to all scores of a query, which softmax ignores: its true gradient is zero.
        # What rounding leaves of it, Adam's normalisation would blow up to full steps that differ in every layout.
        query, key, value = self.bias.chunk(3)
        return F.linear(hidden_BSH, self.weight, torch.cat((query, key.detach(), value)))


class CoefficientLinear(nn.Linear):
    """Linear layer whose input units, in equal groups, carry one learnable coefficient each while searching."""

    def __init__(self, in_features: int, out_features: int, num_coefficients: int | None) -> None:
        super().__init__(in_features, out_features)
        self.coefficients = None if num_coefficients is None else nn.Parameter(torch.ones(num_coefficients))
        self.penalty = torch.zeros(())

    def forward(self, unit_BSI: Tensor) -> Tensor:
        if self.coefficients is None:
            return F.linear(unit_BSI, self.weight, self.bias)
        # One fp32 copy for both uses: their gradients are summed in fp32 and rounded once. The L1 norm is taken here
        # because under ZeRO-3 a parameter is whole only inside its own module's forward pass.
        coefficient = self.coefficients.float()
        self.penalty = coefficient.abs().sum()
        return F.linear(unit_BSI, fold_coefficients(self.weight, coefficient), self.bias)


def total_penalty(modules: list[CoefficientLinear]) -> Tensor:
    """Sum of |c| over all coefficients of these modules' last forward pass, fp32 scalar."""
    return torch.stack([module.penalty for module in modules]).sum()


class Attention(nn.Module):
    """Self-attention of the kept heads, output projection, dropout, residual, LayerNorm."""

    def __init__(self, config: EarlyBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout_probability = config.attention_probs_dropout_prob
        width = heads * config.head_size
        self.qkv = QueryKeyValue(config.hidden_size, 3 * width)
        self.output = CoefficientLinear(width, config.hidden_size, heads if config.searching else None)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_BSH: Tensor, attended_BS: Tensor | None) -> Tensor:
        qkv_BS3AD = self.qkv(hidden_BSH).unflatten(-1, (3, -1, self.head_size))
        dropout = self.dropout_probability if self.training else 0.0
        context_BSI = attention(qkv_BS3AD, attended_BS, dropout).flatten(2)
        return self.LayerNorm(hidden_BSH + self.dropout(self.output(context_BSI)))


class FeedForward(nn.Module):
    """Kept neurons, GELU, output projection, dropout, residual, LayerNorm."""

    def __init__(self, config: EarlyBertConfig, neurons: int) -> None:
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, neurons)
        self.output = CoefficientLinear(neurons, config.hidden_size, neurons if config.searching else None)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        neuron_BSF = F.gelu(self.intermediate(hidden_BSH))
        return self.LayerNorm(hidden_BSH + self.dropout(self.output(neuron_BSF)))


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self, config: EarlyBertConfig, heads: int, neurons: int) -> None:
        super().__init__()
        self.attention = Attention(config, heads)
        self.feed_forward = FeedForward(config, neurons)

    def forward(self, hidden_BSH: Tensor, attended_BS: Tensor | None) -> Tensor:
        return self.feed_forward(self.attention(hidden_BSH, attended_BS))


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
    `seq_relationship_logits`: [B, 2], is-next first; None without next-sentence prediction.
    `head_penalty`, `neuron_penalty`: L1 norms of all head and neuron coefficients, fp32 scalars; None unless searching.
    """

    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    head_penalty: Tensor | None = None
    neuron_penalty: Tensor | None = None


class EarlyBertForPreTraining(PreTrainedModel):
    """Encoder, masked-token head tied to the word embeddings, and (if the config says so) next-sentence head."""

    config_class = EarlyBertConfig
    base_model_prefix = ""
    config: EarlyBertConfig

    def __init__(self, config: EarlyBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            Layer(config, heads, neurons) for heads, neurons in zip(config.heads, config.neurons, strict=True)
        )
        self.masked_token = MaskedTokenTransform(config)
        if config.next_sentence:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            self.next_sentence = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @property
    def encoder_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states, [B, S, H], of token ids [B, S]; `attention_mask` [B, S] is 0 on padding."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden_BSH = self.embeddings(input_ids, token_type_ids)
        attended_BS = None if attention_mask is None else attention_mask.bool()
        for layer in self.encoder_layers:
            hidden_BSH = layer(hidden_BSH, attended_BS)
        return hidden_BSH

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
    ) -> EarlyBertOutput:
        """Scores; with `masked_positions` (indices into the B*S flattened positions, [N]) only at those positions."""
        hidden_BSH = self.encode(input_ids, attention_mask, token_type_ids)
        predicted = hidden_BSH if masked_positions is None else hidden_BSH.flatten(0, 1)[masked_positions]
        predicted, bias_V = self.masked_token(predicted)
        # The decoder has no weight of its own: it is the embedding table, so the two cannot come untied.
        prediction_logits = F.linear(predicted, self.embeddings.word_embeddings.weight, bias_V)
        next_sentence_logits = None
        if self.config.next_sentence:
            next_sentence_logits = self.next_sentence(torch.tanh(self.pooler(hidden_BSH[:, 0])))
        output = EarlyBertOutput(prediction_logits=prediction_logits, seq_relationship_logits=next_sentence_logits)
        if self.config.searching:
            output.head_penalty = total_penalty([layer.attention.output for layer in self.encoder_layers])
            output.neuron_penalty = total_penalty([layer.feed_forward.output for layer in self.encoder_layers])
        return output


AutoConfig.register("earlybert", EarlyBertConfig)
AutoModelForPreTraining.register(EarlyBertConfig, EarlyBertForPreTraining)
