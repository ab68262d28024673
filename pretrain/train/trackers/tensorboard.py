"""TensorBoard's event files, in the run directory. `charts` has the names of what they show."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from earlybert.pretrain.train.trackers.charts import chart, histogram_chart
from earlybert.pretrain.train.trackers.tracker import HISTOGRAM_BINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoard:
    """A `Tracker`. What an interrupted run wrote after the step `resume_after` is dropped; -1 drops all."""

    def __init__(self, run_dir: Path, resume_after: int) -> None:
        self._folder, self._resumed = run_dir / "tensorboard", resume_after >= 0
        self._writer: SummaryWriter | None = SummaryWriter(str(self._folder), purge_step=resume_after + 1)
        threading.excepthook = _show_exception

    def scalars(self, values: Mapping[str, float], global_step: int) -> None:
        for name, value in values.items():
            self._write("add_scalar", chart(name), value, global_step)

    def histogram(self, name: str, values: Tensor, global_step: int) -> None:
        self._write("add_histogram", histogram_chart(name), values, global_step, HISTOGRAM_BINS)

    def text(self, name: str, markdown: str, global_step: int) -> None:
        self._write("add_text", name, markdown, global_step)

    def figure(self, name: str, figure: "Figure", global_step: int) -> None:
        self._write("add_figure", name, figure, global_step)

    def hyperparameters(self, values: Mapping[str, Any], results: Sequence[str]) -> None:
        """For the HPARAMS tab. A resumed run's event files have them already."""
        if self._resumed or self._writer is None:
            return
        simple = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()
        }
        for summary in hparams(simple, dict.fromkeys(map(chart, results), 0.0)):
            self._writer._get_file_writer().add_summary(summary)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        try:
            getattr(self._writer, method)(*arguments)
        except OSError:
            # The library's writer does not recover. The next call begins another event file.
            self._writer = None
            raise


def _show_exception(found: threading.ExceptHookArgs) -> None:
    """Of a thread. TensorBoard's hands what goes wrong to whoever writes next, where it is reported in one line."""
    if not type(found.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(found)
