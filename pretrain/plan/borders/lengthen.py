"""From phase 1 to phase 2: the same network goes on with longer sequences.

Shape suffixes: P positions, H hidden size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.borders.border import Border

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState

NewPositions = Literal["initial", "repeated"]


@dataclass(frozen=True, kw_only=True)
class Lengthen(Border):
    """Weights and moments stay, step counter and schedule start again, as in NVIDIA's BERT; no word of a plan.

    Args:
        trained_length: positions that have been trained, tokens.
        new_positions: what the rows of the position table after them begin with: their "initial" values, or the trained
            rows, "repeated" from the first on (Longformer, Beltagy et al. 2020, section 5).
    """

    word: ClassVar[str] = "lengthen"

    trained_length: int
    new_positions: NewPositions

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        import torch

        from earlybert.pretrain.network.parameters import POSITION_TABLE
        from earlybert.pretrain.network.state import TrainingState

        assert trained is not None
        weights = dict(trained.weights)
        if self.new_positions == "repeated":
            table_PH = weights[POSITION_TABLE]
            weights[POSITION_TABLE] = table_PH[torch.arange(len(table_PH)) % self.trained_length]
        return TrainingState(weights, trained.moments)
