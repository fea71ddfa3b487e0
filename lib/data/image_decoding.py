"""Decoding of image files: the usual formats alone, and damage beside the picture does not matter.

Pillow's plug-ins raise whatever they like on damaged files, so every exception of theirs counts as damage. A
file whose remarks (EXIF data, texts, colour profiles) are damaged, or larger than Pillow allows, is read once
more without them.
"""

import ctypes
import ctypes.util
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lib.runtime.errors import UserError, warn
from lib.runtime.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image

_T = TypeVar("_T")

# Others that Pillow reads are left out: some call other programs (EPS), some are not images (MPEG, HDF5).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")
# How files of these formats begin.
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|II\+\0|MM\0\+|RIFF.{4}WEBP"
    rb"|P[1-6][\s#]|....ftypavi[fs]|\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    re.DOTALL,
)
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # of EXIF


def is_image(head: bytes) -> bool:
    """Return whether a file with these first bytes (16 or more) is an image in one of `FORMATS`."""
    return bool(_BEGINNINGS.match(head))


def decoded(path: str | Path, finish: "Callable[[Image], _T]") -> _T:
    """Return `finish(image)` for the image in a file, with its pixels in memory.

    Raises:
        UserError: the file does not exist, is no file (a pipe), is not an image in one of `FORMATS`, is
            damaged, cut short or too large, or `finish` raises anything.
    """
    from PIL import Image, UnidentifiedImageError

    path = existing_file(path)
    try:
        return finish(_opened(path))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down") from None
    except UnidentifiedImageError:
        if path.stat().st_size and is_image(_beginning(path)):
            raise UserError(f"{path} is damaged: its header cannot be read") from None
        raise UserError(f"{path} is not an image in a known format") from None
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} is damaged, or takes more memory than there is") from None
    except Exception as error:
        why = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(f"{path} is damaged or cut short: {why}") from None


def _opened(path: Path) -> "Image":
    from PIL import Image

    try:
        image = _loaded(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        remarks_apart = _without_remarks(path.read_bytes())
        if remarks_apart is None:
            raise
        data, exif = remarks_apart
        bare = _loaded_if_sound(data)
        if bare is None:
            raise  # what was found first: it speaks of the file as it is
        image = bare
        if exif:
            image.info["exif"] = exif
    if image.format in ("JPEG", "MPO"):
        _notice_early_end(path, image)
    return image


def _loaded_if_sound(data: bytes) -> "Image | None":
    from PIL import Image

    try:
        return _loaded(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        return None


def _loaded(source: Path | io.BytesIO) -> "Image":
    from PIL import Image

    with Image.open(source, formats=_formats()) as image:
        # Pillow raises above twice this number, and warns above it, which threads could not turn into errors.
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Image.DecompressionBombError
        image.load()
        return image


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    # Its warnings and log are about parts that are not shown, or repeat what errors say.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    _silence_libtiff()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence_libtiff() -> None:
    """Keep libtiff from printing its complaints to standard error, which Pillow's exceptions repeat."""
    import PIL

    beside = Path(PIL.__file__).parent
    # In Pillow's wheels for Linux and macOS, or else that of the system.
    libraries = [*beside.parent.glob("pillow.libs/libtiff*"), *beside.glob(".dylibs/libtiff*")]
    name = str(libraries[0]) if libraries else ctypes.util.find_library("tiff")
    try:
        tiff = ctypes.CDLL(name)
        for kind in ("Error", "Warning"):
            setter = getattr(tiff, f"TIFFSet{kind}Handler")
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError, TypeError):  # another build: its complaints stay
        return


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def upright(image: "Image") -> "Image":
    """Return the image turned as its EXIF data say; data that cannot be read say nothing."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data make Pillow raise nearly anything
        return image
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


# Remarks: parts of a file beside the picture


def _without_remarks(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a JPEG or PNG file without its remarks, and its EXIF data; None for other formats."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_without_remarks(data)
    if data.startswith(_PNG):
        return _png_without_remarks(data)
    return None


def _jpeg_without_remarks(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [data[:2]], b"", 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment, marker = data[at : at + length], data[at + 1]
        # APP0 to APP15, and comments. Adobe's APP14 says which colours the numbers mean.
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            kept.append(segment)
        elif segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        at += length
    return b"".join([*kept, data[at:]]), exif


def _png_without_remarks(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [_PNG], b"", len(_PNG)
    while at + 12 <= len(data):
        length = 12 + int.from_bytes(data[at : at + 4], "big")
        kind, chunk = data[at + 4 : at + 8], data[at : at + length]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(chunk)
        elif kind == b"eXIf":
            exif = b"Exif\0\0" + chunk[8:-4]
        at += length
    return b"".join(kept), exif


# JPEG files that end early, with an end marker behind the cut: libjpeg fills the rest with one colour

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PROBE = bytes(range(1, 255)) * 16


def _notice_early_end(path: Path, image: "Image") -> None:
    """Warn if the lower part of a JPEG image is missing from its file.

    Bytes behind the last block of an image are ignored. If the image changes when some are put there, its
    data had ended before its last block.
    """
    corner = np.asarray(image.crop((image.width - 4, image.height - 4, *image.size)).convert("L"))
    if int(corner.max()) - int(corner.min()) > 2:  # what is filled in is flat
        return
    try:
        data = path.read_bytes()
        end = _end_of_scans(data)
        if end is None:
            return
        whole, probed = (_coarse(data[:end] + probe + b"\xff\xd9") for probe in (b"", _PROBE))
    except Exception:  # it was read, and no check of it may change that
        return
    if whole.shape == probed.shape and (whole != probed).any():
        first = int((whole != probed).any(1).nonzero()[0][0])
        warn_once(
            f"{path} ends early: its lower {1 - first / len(whole):.0%} is missing and shown in one colour"
        )


def _end_of_scans(data: bytes) -> int | None:
    """Return the position of the marker that ends the (first) image of a JPEG file."""
    at = 2
    while found := _MARKER.search(data, at):
        at = found.start()
        if data[at + 1] == 0xD9:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _coarse(data: bytes) -> np.ndarray:
    """Return a JPEG image at an eighth of its size, which needs a fraction of the time."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
        return np.asarray(image.convert("L"))


@functools.cache
def warn_once(message: str) -> None:
    """Warn about a file that is read all the same; once, though images are read several times."""
    from torch.utils.data import get_worker_info

    # Workers are started anew for every epoch; the process that they belong to has read the image before.
    if get_worker_info() is None:
        warn(message)
