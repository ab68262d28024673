"""Being asked to stop: by a scheduler before the time limit (SIGUSR1) or by anyone (SIGTERM)."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def ignore_signals() -> None:
    """For a process that is about to leave, so that its exit status says what came of its work.

    While it shuts down Python puts the default handlers back, which end it, in place of functions of ours: but what is
    ignored stays ignored.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Remembers the first of the signals; what a signal interrupts goes on undisturbed, so a second one does no harm.

    The training loop asks at its step borders, where the ranks agree.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """From now on the signals set the flag instead of ending the process."""
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
