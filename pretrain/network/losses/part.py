"""What a part of the loss of pre-training is: everything that the rest of the program asks of one.

Light to import: a part imports PyTorch where it computes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.facts import ParameterFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from earlybert.pretrain.network.batch import Batch
    from earlybert.pretrain.network.model import PreTrainingNetwork
    from earlybert.pretrain.network.work import Work


class Score(NamedTuple):
    """Of one micro-batch: cross-entropy summed, in nats, at least fp32, and how many answers were right. Scalars."""

    loss: "Tensor"
    correct: "Tensor"


class LossPart(ABC):
    """One part of the loss, with its own head on the network. Parts are told apart by their name.

    Attributes:
        name: in a recipe's `losses` and, as NAME_loss and NAME_accuracy, in metrics.jsonl.
        title: what it is called in a report.
        task: what the network does there, said of a validation: "it TASK with a loss of ...".
        counted: what its loss is the mean over, of the global batch.
        objectives: of a corpus, those whose samples have labels for it.
        standard: whether it is trained, where the corpus has the labels, when a recipe names no losses.
        parameters: of its head, by name, in the order of its modules.
        bert_names: Hugging Face's names for its parameters or their beginnings; empty where its BERT has no such head.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    task: ClassVar[str]
    counted: ClassVar[Literal["predictions", "sequences"]]
    objectives: ClassVar[tuple[str, ...]]
    standard: ClassVar[bool] = False
    parameters: ClassVar[Mapping[str, ParameterFacts]]
    bert_names: ClassVar[Mapping[str, str]] = {}

    def count(self, work: "Work") -> int:
        """What its loss is divided by."""
        return work.predictions if self.counted == "predictions" else work.sequences

    @abstractmethod
    def guessing(self, config: NetworkConfig) -> float:
        """Its loss, in nats, where every answer is given the same probability."""

    def guessing_by_frequency(self, config: NetworkConfig, unigram_cross_entropy: float) -> float:
        """Its loss where every answer is given the probability that it has in the corpus."""
        return self.guessing(config)

    @abstractmethod
    def flops(self, config: NetworkConfig) -> float:
        """Floating-point operations of its head's forward pass, for each one of what is counted."""

    @abstractmethod
    def kept_values(self, config: NetworkConfig) -> int:
        """Numbers that its head keeps for the backward pass, for each one of what is counted."""

    def passing_bytes(self, config: NetworkConfig, count: float, number: int) -> float:
        """Memory that it takes in passing for `count` of what is counted; `number` bytes a value (2 or 4)."""
        return 0.0

    @abstractmethod
    def modules(self, config: NetworkConfig) -> dict[str, "nn.Module"]:
        """Its head, as modules of the network by name."""

    @abstractmethod
    def score(self, network: "PreTrainingNetwork", hidden_MH: "Tensor", batch: "Batch") -> Score:
        """Loss of a micro-batch from the last hidden states of its needed rows."""

    @abstractmethod
    def logits(self, network: "PreTrainingNetwork", hidden_xH: "Tensor") -> "Tensor":
        """Scores of all answers, [..., answers], from last hidden states of what is counted."""


def classification_score(logits_BC: "Tensor", labels_B: "Tensor") -> Score:
    """Of one label a sequence; in fp32 at least. C classes."""
    import torch
    import torch.nn.functional as F

    exact_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    loss = F.cross_entropy(exact_BC, labels_B, reduction="sum")
    return Score(loss, (exact_BC.argmax(-1) == labels_B).sum())
