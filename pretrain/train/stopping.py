"""Being asked to stop: by a scheduler before the time limit (SIGUSR1), by Ctrl-C (SIGINT) or by anyone (SIGTERM)."""

import os
import signal
import sys
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Launchers hand a Ctrl-C on to ranks that have had it from the terminal already: within so many seconds it is the same.
SAME = 1.0


def ignore_signals() -> None:
    """For a process that is about to leave, so that its exit status says what came of its work.

    While it shuts down Python puts the default handlers back, which end it, in place of functions of ours: but what is
    ignored stays ignored.
    """
    sys.unraisablehook = _tell
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _tell(unraisable: "sys.UnraisableHookArgs") -> None:
    """What Python does, but for a signal that came while it was made to be ignored: that is an error to Python."""
    if "ignored due to race condition" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


class StopRequest:
    """Remembers the first of the signals; what a signal interrupts goes on undisturbed, so a second one does no harm.

    A second Ctrl-C ends the process at once, as if it was killed. The training loop asks at its step borders, where the
    ranks agree.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._interrupted: float | None = None

    def listen(self) -> None:
        """From now on the signals set the flag, which is not set yet, instead of ending the process."""
        self.signal = self._interrupted = None
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
        if number != signal.SIGINT:
            return
        if self._interrupted is None:
            self._interrupted = time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                # Not by print, which the signal may have interrupted.
                os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")
        elif time.monotonic() - self._interrupted > SAME:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
