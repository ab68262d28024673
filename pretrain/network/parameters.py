"""The table of parameters: what every name means, and which names and shapes a network has.

Everything here is a pure function of names and a `NetworkConfig`, without PyTorch. Of a parameter that is not in the
table, such as one of a task's head, the last words of the name say how it is trained.
"""

from collections.abc import Iterable

from earlybert.kernels.sizes import MOMENTS
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.facts import ParameterFacts, Role, layer_norm_facts, linear_facts
from earlybert.pretrain.network.losses.registry import LOSS_PARTS, loss_parts

POSITION_TABLE = "embeddings.position_embeddings.weight"
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ParameterFacts("weight", ("vocabulary", "hidden")),
    POSITION_TABLE: ParameterFacts("weight", ("positions", "hidden")),
    "embeddings.token_type_embeddings.weight": ParameterFacts("weight", ("segments", "hidden")),
    **layer_norm_facts("embeddings.LayerNorm"),
}
# What follows "layers.N." in a name.
LAYER = {
    **linear_facts("attention.qkv", "head_rows", "hidden", row_blocks=3),
    **linear_facts("attention.output", "hidden", "head_rows"),
    "attention.output.coefficients": ParameterFacts("coefficients", ("heads",)),
    **layer_norm_facts("attention.LayerNorm"),
    **linear_facts("feed_forward.intermediate", "neurons", "hidden"),
    **linear_facts("feed_forward.output", "hidden", "neurons"),
    "feed_forward.output.coefficients": ParameterFacts("coefficients", ("neurons",)),
    **layer_norm_facts("feed_forward.LayerNorm"),
}
# What a sublayer adds to the hidden states, and the LayerNorm that a layer ends with.
SUBLAYER_OUTPUTS = ("attention.output", "feed_forward.output")
LAST_NORM = "feed_forward.LayerNorm"
OUTSIDE_LAYERS = EMBEDDINGS | {name: facts for part in LOSS_PARTS for name, facts in part.parameters.items()}


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
    heads = {name: facts for part in loss_parts(config.losses) for name, facts in part.parameters.items()}
    return EMBEDDINGS | layers | heads


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


def moments_of(name: str, optimizer: str) -> tuple[str, ...]:
    """What a checkpoint holds of a parameter beside its master, where this is the optimizer's type."""
    return MOMENTS[:1] if optimizer == "Muon" and facts_of(name).hidden_matrix else MOMENTS


def is_coefficient(name: str) -> bool:
    """Whether a parameter holds the coefficients of a search."""
    return facts_of(name).role == "coefficients"
