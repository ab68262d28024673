"""Next sentence: whether the second segment goes on with the first (Devlin et al. 2019).

On a corpus of swapped segments it is told whether they are in order. Shape suffixes: B sequences, H hidden size.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.facts import ParameterFacts, linear_facts
from earlybert.pretrain.network.losses.part import LossPart, Score, classification_score

if TYPE_CHECKING:
    from torch import Tensor, nn

    from earlybert.pretrain.network.batch import Batch
    from earlybert.pretrain.network.model import PreTrainingNetwork


class NextSentence(LossPart):
    """BERT's pooler on the first token, and two scores, is-next first."""

    name = "next_sentence"
    title = "next sentence"
    task = "told whether one stretch of unseen text goes on with another"
    counted = "sequences"
    objectives = ("nsp", "sop")
    standard = True
    parameters: ClassVar[Mapping[str, ParameterFacts]] = {
        **linear_facts("pooler", "hidden", "hidden"),
        **linear_facts("next_sentence", 2, "hidden"),
    }
    bert_names: ClassVar[Mapping[str, str]] = {
        "pooler.": "bert.pooler.dense.",
        "next_sentence.": "cls.seq_relationship.",
    }

    def guessing(self, config: NetworkConfig) -> float:
        return math.log(2)

    def flops(self, config: NetworkConfig) -> float:
        return 2.0 * config.hidden_size**2 + 2.0 * config.hidden_size * 2

    def kept_values(self, config: NetworkConfig) -> int:
        return 2 * config.hidden_size

    def modules(self, config: NetworkConfig) -> dict[str, "nn.Module"]:
        from torch import nn

        return {
            "pooler": nn.Linear(config.hidden_size, config.hidden_size),
            "next_sentence": nn.Linear(config.hidden_size, 2),
        }

    def score(self, network: "PreTrainingNetwork", hidden_MH: "Tensor", batch: "Batch") -> Score:
        return classification_score(self.logits(network, hidden_MH[batch.first_rows_B]), batch.segment_labels_B)

    def logits(self, network: "PreTrainingNetwork", hidden_xH: "Tensor") -> "Tensor":
        pooled_xH = network.get_submodule("pooler")(hidden_xH).tanh()
        scores: Tensor = network.get_submodule("next_sentence")(pooled_xH)
        return scores
