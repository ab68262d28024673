"""The beginning of a plan: fresh weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.borders.border import Border

if TYPE_CHECKING:
    from earlybert.pretrain.network.initial import InitialWeights
    from earlybert.pretrain.network.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class Initial(Border):
    """Weights that are a pure function of the seed; no word of a plan, every plan's first stage begins so."""

    word: ClassVar[str] = "initial"

    def begin(
        self, trained: "TrainingState | None", before: NetworkConfig, after: NetworkConfig, initial: "InitialWeights"
    ) -> "TrainingState":
        from earlybert.pretrain.network.state import TrainingState

        return TrainingState(initial(after))
