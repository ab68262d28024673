"""Post-LN BERT for pre-training, with a width of its own in every layer.

Heads and neurons are counted per layer; the hidden size and the head size are the same everywhere. With all units kept
and all coefficients 1 this is `transformers.BertForPreTraining`, weight for weight.

Shape suffixes: B sequences, S positions, T tokens of all sequences packed, M of them that the heads need, x any of
these (leading dimensions), H hidden size, V vocabulary rows, N predicted positions.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlybert.kernels.cross_entropy import linear_cross_entropy
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.layers import Embeddings, Layer, MaskedTokenTransform, total_penalty
from earlybert.pretrain.network.packed import PackedPlaces


class NetworkOutput(NamedTuple):
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


class Encoder(nn.Module):
    """Embeddings and layers, and which heads and neurons those hold: what every model with a head on it begins with."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            Layer(config, heads, neurons) for heads, neurons in zip(config.heads, config.neurons, strict=True)
        )

    @property
    def encoder_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

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


class PreTrainingNetwork(Encoder):
    """Encoder, masked-token head tied to the word embeddings, and (if the config says so) next-sentence head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.masked_token = MaskedTokenTransform(config)
        if config.next_sentence:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            self.next_sentence = nn.Linear(config.hidden_size, 2)

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
    ) -> NetworkOutput:
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
        output = NetworkOutput(**self.penalties())
        predicted_xH, bias_V = self.masked_token(predicted_xH)
        if masked_labels is None:
            output = output._replace(prediction_logits=F.linear(predicted_xH, self.decoder_weight, bias_V))
        else:
            loss, correct = linear_cross_entropy(predicted_xH, self.decoder_weight, bias_V, masked_labels)
            output = output._replace(masked_loss=loss, masked_correct=correct)
        if self.config.next_sentence:
            logits_B2 = self.next_sentence(torch.tanh(self.pooler(first_BH)))
            output = output._replace(seq_relationship_logits=logits_B2)
        return output


def meta_network(config: NetworkConfig) -> PreTrainingNetwork:
    """The network without storage: names and shapes only."""
    with torch.device("meta"):
        return PreTrainingNetwork(config)


def network_with(config: NetworkConfig, weights: Mapping[str, Tensor]) -> PreTrainingNetwork:
    """The network with its own copy of the weights; nothing is initialised before."""
    network = meta_network(config)
    own = {
        name: weights[name].detach().clone(memory_format=torch.contiguous_format)
        for name, _ in network.named_parameters()
    }
    network.load_state_dict(own, assign=True)
    return network
