"""Being asked to stop: by a scheduler before the time limit (SIGUSR1) or by anyone (SIGTERM)."""

import signal
from types import FrameType


class StopRequest:
    """Remembers the first of the signals; what a signal interrupts goes on undisturbed, so a second one does no harm.

    The training loop asks at its step borders, where the ranks agree.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """From now on the signals set the flag instead of ending the process."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
