"""The loss: the mean of every part over the global batch, and the L1 term of the search."""

from collections.abc import Sequence

import torch
from torch import Tensor

from earlybert.pretrain.network.losses.part import LossPart
from earlybert.pretrain.network.model import NetworkOutput
from earlybert.pretrain.network.work import Work


def step_share(output: NetworkOutput, parts: Sequence[LossPart], work: Work, weight: float) -> Tensor:
    """A micro-batch's share of its step's loss: sums divided by the counts of the *global* batch, whose work this is.

    So neither micro-batch size nor world size can change the loss, and every masked token weighs the same. A stand-in,
    of weight 0, counts nothing.
    """
    first, *others = (output.scores[part.name].loss * weight / part.count(work) for part in parts)
    return sum(others, first)


def score_sums(output: NetworkOutput, parts: Sequence[LossPart], weight: float) -> Tensor:
    """Loss and correct answers of every part in turn, float64 [2 * parts], to be added up over batches and ranks."""
    values = [value for part in parts for value in output.scores[part.name]]
    return torch.stack([(value.detach() * weight).double() for value in values])


def mean_scores(sums: Tensor, parts: Sequence[LossPart], work: Work) -> dict[str, float]:
    """What is logged of a global batch, from its `score_sums`: its loss, and of every part its loss and accuracy."""
    means: dict[str, float] = {}
    for part, (loss, correct) in zip(parts, sums.view(-1, 2).tolist(), strict=True):
        means[f"{part.name}_loss"] = loss / part.count(work)
        means[f"{part.name}_accuracy"] = correct / part.count(work)
    return {"loss": sum(means[f"{part.name}_loss"] for part in parts), **means}


def penalty(output: NetworkOutput, lambda_heads: float, lambda_neurons: float) -> Tensor:
    """lambda_heads * sum|c_heads| + lambda_neurons * sum|c_neurons| (EarlyBERT Eq. 4)."""
    assert output.head_penalty is not None and output.neuron_penalty is not None
    return lambda_heads * output.head_penalty + lambda_neurons * output.neuron_penalty
