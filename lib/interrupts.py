"""Ctrl-C and SIGTERM, noted for a moment that suits."""

import signal
import threading


class Signals:
    """Within the block Ctrl-C and SIGTERM are noted and end nothing; a second Ctrl-C ends the process.

    Attributes:
        received: number of the signal; 0 if there was none.
    """

    def __init__(self):
        self.received = 0
        self._before = {}

    def __enter__(self) -> "Signals":
        # Only the main thread may set handlers; elsewhere whoever owns the process handles its signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
