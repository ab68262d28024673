"""Parameters and arithmetic of a network with a width of its own in every layer."""

from collections.abc import Sequence

from earlybert.pretrain.initial import parameter_shapes
from earlybert.pretrain.model import EarlyBertConfig

PRETRAINING_HEADS = ("masked_token.", "next_sentence.")


def count_parameters(config: EarlyBertConfig, *, with_heads: bool = True) -> int:
    """Trainable parameters without the padding rows of the vocabulary.

    `with_heads=False` counts embeddings, encoder and pooler only, as papers do.
    """
    padding = config.padded_vocab_size - config.vocab_size
    total = 0
    for name, shape in parameter_shapes(config).items():
        if with_heads or not name.startswith(PRETRAINING_HEADS):
            total += shape.numel()
            if name in ("embeddings.word_embeddings.weight", "masked_token.bias"):
                total -= padding * shape[1:].numel()
    return total


def flops_per_sequence(
    heads: Sequence[float],
    neurons: Sequence[float],
    hidden_size: int,
    head_size: int,
    vocab_size: int,
    length: int,
    predictions: int,
) -> float:
    """Floating-point operations to train on one full sequence: forward plus twice that for backward.

    Matrix products only, two operations per multiply-add: projections and attention scores of the kept heads, the kept
    neurons, and the vocabulary head on the predicted positions. Units are those of the network that computes.
    """
    projections = sum(8 * hidden_size * heads_l * head_size for heads_l in heads)
    scores = sum(4 * length * heads_l * head_size for heads_l in heads)
    feed_forward = sum(4 * hidden_size * neurons_l for neurons_l in neurons)
    head = 2 * hidden_size**2 + 2 * hidden_size * vocab_size
    return 3.0 * (length * (projections + scores + feed_forward) + predictions * head)


def time_saved(search: float, train: float, base: float, ratio: float) -> float:
    """Share of the dense run's time that was saved: 1 - (search + train * ratio) / base.

    Amounts of work in any one unit (steps, epochs) of dense training; `ratio` is narrow step time over dense step time.
    Recovered from the paper's own figures: 0.2, 2, 3 and 0.7555 give its 42.97 %.
    """
    return 1 - (search + train * ratio) / base
