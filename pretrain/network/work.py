"""Parameters and arithmetic of a network with a width of its own in every layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.parameters import facts_of, parameter_shapes

if TYPE_CHECKING:
    from earlybert.kernels.packing import Packing


def count_parameters(config: NetworkConfig) -> int:
    """Trainable parameters without the padding rows of the vocabulary."""

    def elements(name: str, shape: tuple[int, ...]) -> int:
        rows = config.vocab_size if facts_of(name).pads_vocabulary else shape[0]
        return math.prod((rows, *shape[1:]))

    return sum(elements(name, shape) for name, shape in parameter_shapes(config).items())


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


@dataclass(frozen=True)
class Work:
    """How much there is to compute in a batch of sequences with n real tokens each, of which the heads need m.

    tokens: sum of n. pairs: sum of n * n, the scores of one head. needed: sum of m. needed_pairs: sum of m * n.
    predictions: masked tokens. sequences: of the batch.
    """

    tokens: int = 0
    pairs: int = 0
    needed: int = 0
    needed_pairs: int = 0
    predictions: int = 0
    sequences: int = 0

    @staticmethod
    def of(tokens: "Packing", needed: "Packing", predictions: int) -> "Work":
        pairs = list(zip(tokens.lengths, needed.lengths, strict=True))
        return Work(
            sum(n for n, _ in pairs),
            sum(n * n for n, _ in pairs),
            sum(m for _, m in pairs),
            sum(m * n for n, m in pairs),
            predictions,
            len(pairs),
        )

    @staticmethod
    def total(parts: Iterable["Work"]) -> "Work":
        rows = [list(vars(part).values()) for part in parts]
        return Work(*map(sum, zip(*rows, strict=True)))


def training_flops(config: NetworkConfig, work: Work) -> float:
    """Operations to train on a batch, from its real shapes: as `flops_per_sequence`, but nothing is spent on padding.

    In the last layer all tokens have keys and values; queries and everything after them only the needed positions.
    """
    hidden, head_size = config.hidden_size, config.head_size
    total = 0.0
    for layer, (heads, neurons) in enumerate(zip(config.heads, config.neurons, strict=True)):
        width = heads * head_size
        last = layer == config.num_hidden_layers - 1
        asking, scores = (work.needed, work.needed_pairs) if last else (work.tokens, work.pairs)
        total += 4 * hidden * width * work.tokens  # key and value
        total += (4 * hidden * width + 4 * hidden * neurons) * asking  # query, attention output, feed-forward
        total += 4 * width * scores
    head = 2 * hidden**2 + 2 * hidden * config.vocab_size
    return 3.0 * (total + work.predictions * head)


def time_saved(search: float, train: float, base: float, ratio: float) -> float:
    """Share of the dense run's time that was saved: 1 - (search + train * ratio) / base.

    Amounts of work in any one unit (steps, epochs) of dense training; `ratio` is narrow step time over dense step time.
    Recovered from the paper's own figures: 0.2, 2, 3 and 0.7555 give its 42.97 %.
    """
    return 1 - (search + train * ratio) / base
