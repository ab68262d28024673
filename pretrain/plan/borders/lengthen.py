"""From phase 1 to phase 2: the same network goes on with longer sequences."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.borders.border import Border

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class Lengthen(Border):
    """Weights and moments stay, step counter and schedule start again, as in NVIDIA's BERT; no word of a plan."""

    word: ClassVar[str] = "lengthen"

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        from earlybert.pretrain.network.state import TrainingState

        assert trained is not None
        return TrainingState(trained.weights, trained.moments)
