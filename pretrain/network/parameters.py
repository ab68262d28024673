"""The table of parameters: what every name means, and which names and shapes a network has.

Everything here is a pure function of names and a `NetworkConfig`, without PyTorch. Of a parameter that is not in the
table, such as one of a task's head, the last words of the name say how it is trained.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from earlybert.pretrain.network.config import NetworkConfig

Unit = Literal["heads", "neurons"]
UNITS: tuple[Unit, ...] = ("heads", "neurons")

# "weight": matrices and embeddings; "norm": a LayerNorm's scale; "bias"; "coefficients": those of a search.
Role = Literal["weight", "norm", "bias", "coefficients"]

# A fixed length, or what a network's configuration says of it. "heads" has one element per head that the layer holds,
# "head_rows" one row per head and dimension of a head.
Axis = int | Literal["hidden", "vocabulary", "positions", "segments", "heads", "head_rows", "neurons"]
UNIT_OF_AXIS: dict[Axis, Unit] = {"heads": "heads", "head_rows": "heads", "neurons": "neurons"}


@dataclass(frozen=True)
class ParameterFacts:
    """What a name says.

    `row_blocks` is how many equal blocks of rows the tensor consists of, each as the first of `axes` says: 3 where
    query, key and value are stored as one. Where `axes` is empty the shape is not known here.
    """

    role: Role
    axes: tuple[Axis, ...] = ()
    row_blocks: int = 1

    @property
    def decayed(self) -> bool:
        """Whether weight decay and LAMB's trust ratio are for it."""
        return self.role == "weight"

    @property
    def initially(self) -> Literal["normal", "ones", "zeros"]:
        return "normal" if self.role == "weight" else "zeros" if self.role == "bias" else "ones"

    @property
    def pads_vocabulary(self) -> bool:
        """Whether rows at its end are there only to round the vocabulary up."""
        return "vocabulary" in self.axes

    @property
    def unit_axis(self) -> int | None:
        """The axis that heads or neurons lie along; None where it holds none."""
        return next((index for index, axis in enumerate(self.axes) if axis in UNIT_OF_AXIS), None)

    @property
    def unit(self) -> Unit | None:
        """Which units lie along that axis."""
        return None if self.unit_axis is None else UNIT_OF_AXIS[self.axes[self.unit_axis]]

    def shape(self, config: NetworkConfig, layer: int = -1) -> tuple[int, ...]:
        """In a network of this shape; `layer` is the one that it belongs to."""
        lengths: dict[Axis, int] = {
            "hidden": config.hidden_size,
            "vocabulary": config.padded_vocab_size,
            "positions": config.max_position_embeddings,
            "segments": config.type_vocab_size,
        }
        if layer >= 0:
            heads = config.heads[layer]
            lengths |= {"heads": heads, "head_rows": heads * config.head_size, "neurons": config.neurons[layer]}
        rows, *others = (axis if isinstance(axis, int) else lengths[axis] for axis in self.axes)
        return (self.row_blocks * rows, *others)


def _linear(name: str, rows: Axis, columns: Axis, row_blocks: int = 1) -> dict[str, ParameterFacts]:
    return {
        f"{name}.weight": ParameterFacts("weight", (rows, columns), row_blocks),
        f"{name}.bias": ParameterFacts("bias", (rows,), row_blocks),
    }


def _layer_norm(name: str) -> dict[str, ParameterFacts]:
    return {
        f"{name}.weight": ParameterFacts("norm", ("hidden",)),
        f"{name}.bias": ParameterFacts("bias", ("hidden",)),
    }


EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ParameterFacts("weight", ("vocabulary", "hidden")),
    "embeddings.position_embeddings.weight": ParameterFacts("weight", ("positions", "hidden")),
    "embeddings.token_type_embeddings.weight": ParameterFacts("weight", ("segments", "hidden")),
    **_layer_norm("embeddings.LayerNorm"),
}
# What follows "layers.N." in a name.
LAYER = {
    **_linear("attention.qkv", "head_rows", "hidden", row_blocks=3),
    **_linear("attention.output", "hidden", "head_rows"),
    "attention.output.coefficients": ParameterFacts("coefficients", ("heads",)),
    **_layer_norm("attention.LayerNorm"),
    **_linear("feed_forward.intermediate", "neurons", "hidden"),
    **_linear("feed_forward.output", "hidden", "neurons"),
    "feed_forward.output.coefficients": ParameterFacts("coefficients", ("neurons",)),
    **_layer_norm("feed_forward.LayerNorm"),
}
# What a sublayer adds to the hidden states, and the LayerNorm that a layer ends with.
SUBLAYER_OUTPUTS = ("attention.output", "feed_forward.output")
LAST_NORM = "feed_forward.LayerNorm"
MASKED_TOKEN_HEAD = {
    "masked_token.bias": ParameterFacts("bias", ("vocabulary",)),
    **_linear("masked_token.dense", "hidden", "hidden"),
    **_layer_norm("masked_token.LayerNorm"),
}
NEXT_SENTENCE_HEAD = {**_linear("pooler", "hidden", "hidden"), **_linear("next_sentence", 2, "hidden")}
OUTSIDE_LAYERS = EMBEDDINGS | MASKED_TOKEN_HEAD | NEXT_SENTENCE_HEAD


def facts_of(name: str) -> ParameterFacts:
    """What the table says of a parameter; of a head that is not in it, what the last words of the name say.

    Raises ValueError for a name that says nothing.
    """
    layer, row = split_name(name)
    table = OUTSIDE_LAYERS if layer < 0 else LAYER
    return table[row] if row in table else ParameterFacts(_role_of(name))


def _role_of(name: str) -> Role:
    module, _, last = name.rpartition(".")
    if last == "weight":
        return "norm" if module.endswith("LayerNorm") else "weight"
    if last == "bias":
        return "bias"
    raise ValueError(f"the parameter {name!r} is in no table; its name must end with weight or bias")


def network_parameters(config: NetworkConfig) -> dict[str, ParameterFacts]:
    """All parameters of a network of pre-training by name, in the order of its modules."""
    layer_table = {row: facts for row, facts in LAYER.items() if config.searching or facts.role != "coefficients"}
    layers = {
        f"layers.{layer}.{row}": facts
        for layer in range(config.num_hidden_layers)
        for row, facts in layer_table.items()
    }
    return EMBEDDINGS | layers | MASKED_TOKEN_HEAD | (NEXT_SENTENCE_HEAD if config.next_sentence else {})


def parameter_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name."""
    return {name: facts.shape(config, layer_of(name)) for name, facts in network_parameters(config).items()}


def split_name(name: str) -> tuple[int, str]:
    """Index of the encoder layer that a parameter belongs to, and its name in there; -1 and all of it outside them."""
    if not name.startswith("layers."):
        return -1, name
    _, layer, row = name.split(".", 2)
    return int(layer), row


def layer_of(name: str) -> int:
    """Index of the encoder layer that a parameter belongs to; -1 outside the encoder."""
    return split_name(name)[0]


def depth_of(names: Iterable[str]) -> int:
    """Number of encoder layers that the parameters are of."""
    return 1 + max(map(layer_of, names))


def is_coefficient(name: str) -> bool:
    """Whether a parameter holds the coefficients of a search."""
    return facts_of(name).role == "coefficients"
