"""The standard streams of a process: always open, and abandoned when nobody reads them any more."""

import contextlib
import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Connect each standard stream that the parent process closed to the null device.

    Otherwise the next file that is opened gets the stream's number, and what is printed is written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: those below it are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def abandon(stream: TextIO) -> None:
    """Send what is still buffered in `stream`, and all that follows, to the null device.

    After a failed write the text stays in the buffer: the next flush, at the latest the interpreter's own as
    it ends, would fail again.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream may have no file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
