"""What can be said of a parameter: its axes, the units along them, how it is trained, what it starts from."""

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
# Those along which hidden states lie.
HIDDEN_AXES: frozenset[Axis] = frozenset({"hidden", "head_rows", "neurons"})
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
    def hidden_matrix(self) -> bool:
        """Whether it maps hidden states to hidden states; embeddings and classifiers do not."""
        return self.decayed and bool(self.axes) and HIDDEN_AXES.issuperset(self.axes)

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


def linear_facts(name: str, rows: Axis, columns: Axis, row_blocks: int = 1) -> dict[str, ParameterFacts]:
    """Those of a linear layer."""
    return {
        f"{name}.weight": ParameterFacts("weight", (rows, columns), row_blocks),
        f"{name}.bias": ParameterFacts("bias", (rows,), row_blocks),
    }


def layer_norm_facts(name: str) -> dict[str, ParameterFacts]:
    """Those of a LayerNorm."""
    return {
        f"{name}.weight": ParameterFacts("norm", ("hidden",)),
        f"{name}.bias": ParameterFacts("bias", ("hidden",)),
    }
