"""Shape of a network, full or narrow. Light to import: nothing here needs PyTorch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

VOCABULARY_MULTIPLE = 64

# For each layer the sorted indices, in the full network, of the units that it holds.
KeptIndices = tuple[tuple[int, ...], ...]


class NarrowUnits(NamedTuple):
    """What a narrow network holds of the full one."""

    heads: KeptIndices
    neurons: KeptIndices

    def of_layers(self, layers: Sequence[int]) -> "NarrowUnits":
        """Those of another network, whose layers keep what these do."""
        return NarrowUnits(*(tuple(kept[layer] for layer in layers) for kept in self))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the full network, and which of its heads and neurons are there. To be changed by `dataclasses.replace`.

    `losses` are the names of the parts of the loss that it has heads for (`losses/`). `kept_heads[l]` and
    `kept_neurons[l]` are what layer l holds; None keeps everything. `wider` is what it will hold after each widening
    to a wider ticket. `searching` adds one coefficient per head and neuron.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    losses: tuple[str, ...] = ("masked", "next_sentence")
    searching: bool = False
    kept_heads: KeptIndices | None = None
    kept_neurons: KeptIndices | None = None
    wider: tuple[NarrowUnits, ...] = ()
    ticket_sha256: str | None = None

    @property
    def kept_units(self) -> NarrowUnits | None:
        """The heads and neurons of a narrow network; None where all are there."""
        if self.kept_heads is None or self.kept_neurons is None:
            return None
        return NarrowUnits(self.kept_heads, self.kept_neurons)

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


def dense_config(config: NetworkConfig) -> NetworkConfig:
    """The same network with all its heads and neurons."""
    return dataclasses.replace(config, kept_heads=None, kept_neurons=None, wider=(), ticket_sha256=None)


def without_coefficients(config: NetworkConfig) -> NetworkConfig:
    """The same network when it is not searched."""
    return dataclasses.replace(config, searching=False)
