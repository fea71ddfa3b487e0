"""Repairs of the standard streams: those that are closed at the start, and those whose reader is gone."""

import contextlib
import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Connect each standard stream that the parent process closed to the null device.

    Otherwise the next file to be opened gets the number of that stream, and printed text ends up in the file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # `open` takes the lowest free number, which is this one, because those below it are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def abandon(stream: TextIO) -> None:
    """Redirect `stream` to the null device, with the text that is still in its buffer.

    After a failed write, the text stays in the buffer, and the next flush would fail again, at the latest the
    interpreter's own flush at exit.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream may have no file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
