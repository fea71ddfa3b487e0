"""Repairs of the standard streams: closed at the start, in an encoding that lacks letters, without reader."""

import contextlib
import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Make the standard streams fit to be used; to be called before anything is printed."""
    _open_missing()
    _replace_what_cannot_be_written()


def _open_missing() -> None:
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


def _replace_what_cannot_be_written() -> None:
    r"""Escape the letters that the encoding of an output lacks, instead of failing: `\u732b`.

    The encoding itself stays, because the user or the terminal has chosen it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon(stream: TextIO) -> None:
    """Redirect `stream` to the null device, with the text that is still in its buffer.

    After a failed write, the text stays in the buffer, and the next flush would fail again, at the latest the
    interpreter's own flush at exit.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream may have no file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
