"""Weights & Biases and Trackio, whose libraries have nearly the same interface.

A resumed run goes on in the same run of the service. Neither takes points back: after a checkpoint was gone back to,
the steps that are made again have the points of both times.
"""

import html
import importlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image
from torch import Tensor

from earlybert.core.errors import UserError, one_line
from earlybert.pretrain.train.trackers.tracker import HISTOGRAM_BINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_PROJECT = "earlybert"


class Service(ABC):
    """A `Tracker` whose library is imported only now.

    Args:
        run_dir: The run's folder, whose name is part of what the service shows.
        run_id: Of this run and no other; the same when it is resumed.

    Raises:
        UserError: The library does not begin a run, for example because nobody is logged in.
    """

    library_name: ClassVar[str]

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self._library = importlib.import_module(self.library_name)
        project = os.environ.get(f"{self.library_name.upper()}_PROJECT", DEFAULT_PROJECT)
        try:
            self._run = self._begin(project, f"{run_dir.resolve().name}-{run_id}", run_dir, run_id)
        except Exception as error:
            raise UserError(
                f"trackers has {self.library_name}, which cannot begin a run ({_told(error)}); "
                "put that right or leave it out"
            ) from error

    @abstractmethod
    def _begin(self, project: str, name: str, run_dir: Path, run_id: str) -> Any:
        """The library's run."""

    @abstractmethod
    def _log(self, values: Mapping[str, Any], global_step: int) -> None: ...

    @abstractmethod
    def _text(self, markdown: str) -> Any: ...

    def scalars(self, values: Mapping[str, float], global_step: int) -> None:
        self._guarded(lambda: self._log(values, global_step))

    def histogram(self, name: str, values: Tensor, global_step: int) -> None:
        histogram = self._library.Histogram
        numbers = values.flatten().tolist()
        self._guarded(lambda: self._log({name: histogram(numbers, num_bins=HISTOGRAM_BINS)}, global_step))

    def text(self, name: str, markdown: str, global_step: int) -> None:
        # A series has one kind of values, and the ticket is a picture, too.
        self._guarded(lambda: self._log({f"{name}_text": self._text(markdown)}, global_step))

    def figure(self, name: str, figure: "Figure", global_step: int) -> None:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        self._guarded(lambda: self._log({name: self._library.Image(Image.open(file))}, global_step))

    def hyperparameters(self, values: Mapping[str, Any], results: Sequence[str]) -> None:
        """A resumed run may have another layout. The services show the last values of all series by themselves."""
        self._guarded(lambda: self._configure(dict(values)))

    def _configure(self, values: dict[str, Any]) -> None:
        self._run.config.update(values)

    def close(self) -> None:
        self._guarded(self._library.finish)

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # a service may fail in ways of its own; a tracker has one
            raise OSError(f"{self.library_name}: {_told(error)}") from error


class Wandb(Service):
    """Its own step only grows, so the run's step is a value of its own, and the axis of all curves."""

    library_name = "wandb"

    def _begin(self, project: str, name: str, run_dir: Path, run_id: str) -> Any:
        run = self._library.init(project=project, name=name, id=run_id, dir=str(run_dir), resume="allow")
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        return run

    def _log(self, values: Mapping[str, Any], global_step: int) -> None:
        self._run.log({**values, "global_step": global_step})

    def _text(self, markdown: str) -> Any:
        return self._library.Html(f"<pre>{html.escape(markdown)}</pre>")

    def _configure(self, values: dict[str, Any]) -> None:
        self._run.config.update(values, allow_val_change=True)


class Trackio(Service):
    """It knows a run by its name."""

    library_name = "trackio"

    def _begin(self, project: str, name: str, run_dir: Path, run_id: str) -> Any:
        return self._library.init(project=project, name=name, resume="allow", embed=False)

    def _log(self, values: Mapping[str, Any], global_step: int) -> None:
        self._run.log(dict(values), step=global_step)

    def _text(self, markdown: str) -> Any:
        return self._library.Markdown(markdown)


def _told(error: Exception) -> str:
    return one_line(error) or type(error).__name__
