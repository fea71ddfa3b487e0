"""Text from bytes as other programs write them: compressed, in UTF-8, UTF-16 or UTF-32, or no text at all."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import IO

from lib.runtime.errors import UserError

_HEAD = 4096  # bytes by which the kind of a file is told
# A larger share of undecodable bytes and control characters is no text, or text in another encoding.
_MOST_STRANGE = 0.2
_STRANGE = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
_BINARY = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"(\xb5/\xfd", "compressed by zstd"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "a database"),
)
# The decompressors' errors of damaged data.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)


@contextlib.contextmanager
def lines_of(file: IO[bytes], name: str) -> Iterator[Iterator[str]]:
    """Yield the lines of an open file, each with its newline; bytes that are not UTF-8 become U+FFFD.

    Compressed files (gzip, bzip2, xz) are told by their content, and encodings by a byte order mark.

    Raises:
        UserError: the file is no text: it has NUL bytes or the beginning of another kind of file, or most of
            it cannot be decoded; or it is compressed and damaged. The message names `name`.
    """
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(_Raw(file))
    try:
        head = buffered.peek(_HEAD)[:_HEAD]
        unpack = next((each for magic, each in _COMPRESSED if head.startswith(magic)), None)
        if unpack:
            buffered = io.BufferedReader(unpack(buffered))
            head = buffered.peek(_HEAD)[:_HEAD]
    except _DAMAGE as error:
        raise UserError(f"{name} cannot be read: {error}") from None
    encoding = next((each for mark, each in _BOMS if head.startswith(mark)), "utf-8")
    _check_is_text(head, encoding, name)
    text = io.TextIOWrapper(buffered, encoding, errors="replace", newline="\n")
    try:
        yield _checked(text, name)
    finally:
        text.detach()  # otherwise `text` would close the file, which it did not open


class _Raw(io.RawIOBase):
    """A stream of bytes, e.g. an `io.BytesIO`, as the raw stream that a `BufferedReader` wants."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self._stream.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def _check_is_text(head: bytes, encoding: str, name: str) -> None:
    for magic, kind in _BINARY:
        if head.startswith(magic):
            raise UserError(f"{name} is {kind}, not a file of texts")
    if encoding == "utf-8" and b"\0" in head:
        raise UserError(_no_text(name))
    # The last character may be cut.
    beginning = head.decode(encoding, "replace")[:-1]
    strange = len(_STRANGE.findall(beginning))
    if strange > 16 and strange > _MOST_STRANGE * len(beginning):
        raise UserError(
            f"{name} is no text in UTF-8: {strange / len(beginning):.0%} of its beginning cannot be "
            "read; save it as UTF-8"
        )


def _no_text(name: str) -> str:
    return f"{name} is no text in UTF-8 (it has NUL bytes): save it as UTF-8, or with a byte order mark"


def _checked(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    try:
        for line in text:
            if "\0" in line:
                raise UserError(_no_text(name))
            yield line
    except _DAMAGE as error:
        raise UserError(f"{name} is damaged or cut short: {error}") from None
    except UnicodeError as error:  # UTF-16 and UTF-32, whose marks and lengths can be wrong
        raise UserError(f"{name} cannot be decoded: {error}") from None
