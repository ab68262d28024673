"""The loss: masked-token and next-sentence cross-entropy over the global batch, and the L1 term of the search.

Shape suffixes: B sequences.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.pretrain.network.model import NetworkOutput
from earlybert.pretrain.train.batches import Batch


@dataclass(frozen=True)
class Scores:
    """Sums over one micro-batch, fp32 scalars: cross-entropies in nats, and counts of correct predictions."""

    masked_loss: Tensor
    masked_correct: Tensor
    next_sentence_loss: Tensor
    next_sentence_correct: Tensor

    def detached(self) -> Tensor:
        """The four sums as one float64 vector, for adding up over micro-batches and ranks."""
        values = (self.masked_loss, self.masked_correct, self.next_sentence_loss, self.next_sentence_correct)
        return torch.stack([value.detach().double() for value in values])


def score(output: NetworkOutput, batch: Batch) -> Scores:
    """Sums of the losses of a micro-batch; a stand-in batch counts nothing."""
    assert output.masked_loss is not None and output.masked_correct is not None
    masked_loss, masked_correct = output.masked_loss * batch.weight, output.masked_correct * batch.weight
    zero = masked_loss.new_zeros(())
    if output.seq_relationship_logits is None:
        return Scores(masked_loss, masked_correct, zero, zero)
    logits_B2 = output.seq_relationship_logits.float()
    labels_B = batch.next_sentence_labels_B
    return Scores(
        masked_loss,
        masked_correct,
        F.cross_entropy(logits_B2, labels_B, reduction="sum") * batch.weight,
        (logits_B2.argmax(-1) == labels_B).sum() * batch.weight,
    )


def step_share(scores: Scores, predictions: int, sequences: int) -> Tensor:
    """This micro-batch's part of the step's loss: sums divided by the counts of the *global* batch.

    So neither micro-batch size nor world size can change the loss, and every masked token weighs the same.
    """
    return scores.masked_loss / predictions + scores.next_sentence_loss / sequences


def penalty(output: NetworkOutput, lambda_heads: float, lambda_neurons: float) -> Tensor:
    """lambda_heads * sum|c_heads| + lambda_neurons * sum|c_neurons| (EarlyBERT Eq. 4)."""
    assert output.head_penalty is not None and output.neuron_penalty is not None
    return lambda_heads * output.head_penalty + lambda_neurons * output.neuron_penalty
