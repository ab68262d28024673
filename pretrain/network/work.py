"""Parameters and arithmetic of a network with a width of its own in every layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.parameters import facts_of, parameter_shapes

if TYPE_CHECKING:
    from earlybert.pretrain.network.batch import Batch


def count_parameters(config: NetworkConfig) -> int:
    """Trainable parameters without the padding rows of the vocabulary."""

    def elements(name: str, shape: tuple[int, ...]) -> int:
        rows = config.vocab_size if facts_of(name).pads_vocabulary else shape[0]
        return math.prod((rows, *shape[1:]))

    return sum(elements(name, shape) for name, shape in parameter_shapes(config).items())


def flops_per_sequence(config: NetworkConfig, length: int, predictions: int) -> float:
    """Floating-point operations to train on one full sequence: forward plus twice that for backward.

    Matrix products only, two operations per multiply-add: projections and attention scores of the kept heads, the kept
    neurons, and the heads of the loss.
    """
    hidden, head_size = config.hidden_size, config.head_size
    projections = sum(8 * hidden * heads * head_size for heads in config.heads)
    scores = sum(4 * length * heads * head_size for heads in config.heads)
    feed_forward = sum(4 * hidden * neurons for neurons in config.neurons)
    loss = loss_flops(config, Work(predictions=predictions, sequences=1))
    return 3.0 * (length * (projections + scores + feed_forward) + loss)


def loss_flops(config: NetworkConfig, work: "Work") -> float:
    """Operations of the forward pass of all heads of the loss."""
    return sum(part.count(work) * part.flops(config) for part in loss_parts(config.losses))


@dataclass(frozen=True)
class Work:
    """How much there is to compute in a batch of sequences with n real tokens each, of which the losses need m.

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
    def of(batch: "Batch") -> "Work":
        return Work.of_lengths(batch.tokens.lengths, batch.needed.lengths, len(batch.masked_labels_N))

    @staticmethod
    def of_lengths(tokens: Sequence[int], needed: Sequence[int], predictions: int) -> "Work":
        """Of sequences with so many tokens each, of which so many are needed."""
        return Work(
            tokens=sum(tokens),
            pairs=sum(n * n for n in tokens),
            needed=sum(needed),
            needed_pairs=sum(m * n for n, m in zip(tokens, needed, strict=True)),
            predictions=predictions,
            sequences=len(tokens),
        )

    @staticmethod
    def total(parts: Iterable["Work"]) -> "Work":
        rows = [list(vars(part).values()) for part in (Work(), *parts)]
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
    return 3.0 * (total + loss_flops(config, work))


def time_saved(search: float, train: float, base: float, ratio: float) -> float:
    """Share of the dense run's time that was saved: 1 - (search + train * ratio) / base.

    Amounts of work in any one unit (steps, epochs) of dense training; `ratio` is narrow step time over dense step time.
    Recovered from the paper's own figures: 0.2, 2, 3 and 0.7555 give its 42.97 %.
    """
    return 1 - (search + train * ratio) / base
