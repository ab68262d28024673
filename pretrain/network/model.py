"""Post-LN BERT for pre-training, with a width of its own in every layer.

Heads and neurons are counted per layer; the hidden size and the head size are the same everywhere. With all units kept
and all coefficients 1 this is `transformers.BertForPreTraining`, weight for weight.

Shape suffixes: B sequences, S positions, T tokens of all sequences, M of them that the losses need, H hidden size,
V vocabulary rows, N predicted positions.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.layers import Embeddings, Layer, total_penalty
from earlybert.pretrain.network.losses.part import Score
from earlybert.pretrain.network.losses.registry import loss_parts


class NetworkOutput(NamedTuple):
    """What a forward pass gives.

    `scores`: of every part of the loss by its name. `head_penalty`, `neuron_penalty`: L1 norms of all head and neuron
    coefficients, fp32 scalars; None unless searching.
    """

    scores: dict[str, Score]
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

    def encode(self, batch: Batch) -> Tensor:
        """Last hidden states of the needed rows, [M, H]; the last layer computes no others."""
        hidden_TH = self.embeddings(batch.input_ids_T, batch.token_type_ids_T, batch.position_ids_T)
        *inner, last = self.encoder_layers
        for layer in inner:
            hidden_TH = layer.feed_forward(layer.attention.packed(hidden_TH, batch.tokens))
        return last.feed_forward(last.attention.needed(hidden_TH, batch))

    def encode_padded(
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

    def penalties(self) -> dict[str, Tensor]:
        """While searching, the last forward pass's L1 norms of all head and neuron coefficients, fp32 scalars."""
        if not self.config.searching:
            return {}
        return {
            "head_penalty": total_penalty([layer.attention.output for layer in self.encoder_layers]),
            "neuron_penalty": total_penalty([layer.feed_forward.output for layer in self.encoder_layers]),
        }


class PreTrainingNetwork(Encoder):
    """Encoder, and a head for every part of the loss."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.parts = loss_parts(config.losses)
        for part in self.parts:
            for name, module in part.modules(config).items():
                self.add_module(name, module)

    @property
    def decoder_weight(self) -> nn.Parameter:
        """What scores the vocabulary, [V, H]: the embedding table itself, so the two cannot come untied."""
        return cast(nn.Parameter, self.embeddings.word_embeddings.weight)

    def forward(self, batch: Batch) -> NetworkOutput:
        hidden_MH = self.encode(batch)
        return NetworkOutput({part.name: part.score(self, hidden_MH, batch) for part in self.parts}, **self.penalties())

    def padded_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scores of a padded batch by the names of the parts: of tokens [B, S, V], of sequences [B, answers].

        With `masked_positions`, [N] indices into the B*S positions, of the tokens there alone, [N, V]. Rows of the
        padded vocabulary are minus infinity.
        """
        hidden_BSH = self.encode_padded(input_ids, attention_mask, token_type_ids)
        predicted_xH = hidden_BSH if masked_positions is None else hidden_BSH.flatten(0, 1)[masked_positions]
        rows = {"predictions": predicted_xH, "sequences": hidden_BSH[:, 0]}
        return {part.name: part.logits(self, rows[part.counted]) for part in self.parts}


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
