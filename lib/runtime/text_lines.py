"""Lines of text files as other programs write them: UTF-8 or UTF-16, with colours, from a file or a pipe."""

import codecs
import io
import os
import re
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lib.runtime.errors import UserError
from lib.runtime.files import existing_file

LONGEST_LINE = 2**20  # a longer line, of a file that is no text, arrives in parts
PATIENCE = 10  # seconds in which the writer of a named pipe must come

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# ECMA-48: control sequences such as colours, and operating system commands such as titles of windows.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


def without_colours(line: str) -> str:
    """Return `line` without the sequences by which programs colour what a terminal shows."""
    return _TERMINAL.sub("", line) if "\x1b" in line else line


def decoded(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of `stream`, each with its newline; bytes that are no text become U+FFFD.

    A byte order mark tells the encoding; without one it is UTF-8. PowerShell's `>` and `Tee-Object` write
    UTF-16.
    """
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(_Raw(stream))
    start = buffered.peek(64)[:64]
    encoding = next((name for mark, name in _BOMS if start.startswith(mark)), "utf-8")
    if "16" in encoding and b"\x00" not in start:  # no letter of ASCII: bytes that are no text
        encoding = "utf-8"
    text = io.TextIOWrapper(buffered, encoding, errors="replace", newline="\n")
    try:
        while line := text.readline(LONGEST_LINE):
            # UTF-16 that was appended to a file of UTF-8 still has its letters among the zeros.
            yield line.replace("\x00", "")
    finally:
        text.detach()  # otherwise `text` would close the stream, which it did not open


class _Raw(io.RawIOBase):
    """A stream of bytes, e.g. an `io.BytesIO`, as the raw stream that a `BufferedReader` wants."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        part = self._stream.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def open_text(path: Path) -> io.BufferedReader:
    """Open a file, or a pipe such as bash's `<(…)`, to be read.

    Raises:
        UserError: it cannot be read, is a device, or a pipe into which nobody writes.
    """
    if os.path.exists(path) and stat.S_ISFIFO(path.stat().st_mode) and os.access(path, os.R_OK):
        return _opened_pipe(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path} is a device, not a file")  # /dev/zero never ends
    return existing_file(path).open("rb")


def _opened_pipe(path: Path) -> io.BufferedReader:
    # A blocking `open` would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    if not waiting.poll(PATIENCE * 1000):
        os.close(descriptor)
        raise UserError(f"{path} is a pipe into which nobody has written for {PATIENCE} seconds")
    os.set_blocking(descriptor, True)
    return open(descriptor, "rb")
