"""Ctrl-C and SIGTERM, noted for a moment that suits."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Signals:
    """Within the block Ctrl-C and SIGTERM are noted and end nothing; a second Ctrl-C ends the process.

    Attributes:
        received: number of the signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._is_waiting = False

    def __enter__(self) -> "Signals":
        # Only the main thread may set handlers; elsewhere whoever owns the process handles its signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until_received(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` until a signal comes, also while the next of them is waited for (standard input)."""
        iterator = None
        while True:
            try:
                with self._waiting():
                    # Asked for an iterator, a DataLoader begins to wait for its first items.
                    if iterator is None:
                        iterator = iter(items)
                    item = next(iterator)
            except (StopIteration, _SignalReceived):
                return
            yield item

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Within the block a signal is raised as an exception, which ends a system call that waits."""
        self._is_waiting = True
        try:
            if self.received:
                raise _SignalReceived
            yield
        finally:
            self._is_waiting = False

    def _note(self, number: int, _frame) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._is_waiting:
            raise _SignalReceived


class _SignalReceived(KeyboardInterrupt):
    """Not an `Exception`, so that nothing between the signal and `until_received` takes it for an error."""
