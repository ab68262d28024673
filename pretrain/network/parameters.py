"""What a parameter's name says about it."""

from collections.abc import Iterable


def layer_of(name: str) -> int:
    """Index of the encoder layer that a parameter belongs to; -1 outside the encoder."""
    return int(name.split(".")[1]) if name.startswith("layers.") else -1


def depth_of(names: Iterable[str]) -> int:
    """Number of encoder layers that the parameters are of."""
    return 1 + max(map(layer_of, names))


def unit_axis(name: str) -> tuple[str, int] | None:
    """Which units ("heads" or "neurons") a parameter holds, and along which axis; None when it holds none."""
    axes = {
        "attention.qkv.weight": ("heads", 0),
        "attention.qkv.bias": ("heads", 0),
        "attention.output.weight": ("heads", 1),
        "attention.output.coefficients": ("heads", 0),
        "feed_forward.intermediate.weight": ("neurons", 0),
        "feed_forward.intermediate.bias": ("neurons", 0),
        "feed_forward.output.weight": ("neurons", 1),
        "feed_forward.output.coefficients": ("neurons", 0),
    }
    return axes.get(name.split(".", 2)[2]) if name.startswith("layers.") else None
