"""Deferred handling of the signals that end a run: it stops at its next safe point."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# Ctrl-C, the end that `kill` and schedulers ask for, a closed terminal, and the warning that some clusters
# send before they end a job. Not all platforms have the last two.
ENDINGS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)


class Signals:
    """Context in which the signals of `ENDINGS` are only recorded; a second Ctrl-C raises KeyboardInterrupt.

    A signal that this process was started to ignore (SIGHUP under `nohup`) stays ignored.

    Attributes:
        received: number of the signal received; 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._is_waiting = False

    def __enter__(self) -> "Signals":
        # Python lets only the main thread set handlers; in another thread, signals are left as they are.
        if threading.current_thread() is threading.main_thread():
            for number in ENDINGS:
                # None: a handler that was not set from Python, which could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until_received(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` until a signal arrives, even during the wait for the next one (on standard input)."""
        iterator = None
        while True:
            try:
                with self._waiting():
                    # `iter` belongs inside, because that of a DataLoader already waits for its first items.
                    if iterator is None:
                        iterator = iter(items)
                    item = next(iterator)
            except (StopIteration, _SignalReceived):
                return
            yield item

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Within the block, a signal raises an exception, which interrupts a blocking system call."""
        self._is_waiting = True
        try:
            if self.received:
                raise _SignalReceived
            yield
        finally:
            self._is_waiting = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._is_waiting:
            raise _SignalReceived


class _SignalReceived(KeyboardInterrupt):
    """Raised by a signal; not an `Exception`, so that no `except Exception` on the way catches it."""
