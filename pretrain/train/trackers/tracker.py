"""What a tracker is: it shows a run's numbers, pictures and texts, each at a step of the run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Libraries' own bins are a tenth wide at 1, where the coefficients are.
HISTOGRAM_BINS = 64


class Tracker(Protocol):
    """Every method raises OSError where nothing can be written; the tracker can be used again after that."""

    def scalars(self, values: Mapping[str, float], global_step: int) -> None:
        """A point of each series; the names are `kind/name`."""

    def histogram(self, name: str, values: Tensor, global_step: int) -> None:
        """How the values of a tensor of any shape spread."""

    def text(self, name: str, markdown: str, global_step: int) -> None: ...

    def figure(self, name: str, figure: "Figure", global_step: int) -> None: ...

    def hyperparameters(self, values: Mapping[str, Any], results: Sequence[str]) -> None:
        """The run's numbers by name, and the series whose last values are its results."""

    def close(self) -> None:
        """Writes what is left. Nothing comes after it."""
