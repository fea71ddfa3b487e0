"""Image files of any format, read as a viewer would show them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import UserError
from lib.runtime.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image


def read(path: str | Path) -> "Image":
    """Read an image file in RGB: rotated as its EXIF data says, transparency over white.

    Raises:
        UserError: the file does not exist, is not an image, is damaged or cut short, or is a decompression
            bomb (more pixels than Pillow's `MAX_IMAGE_PIXELS`).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = existing_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image in a known format") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from None


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip at 255
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / max(values.max(), 65535) * 255).astype(np.uint8))
    elif image.mode == "F" and np.asarray(image).max() <= 1:  # in [0, 1]; convert() expects 0 to 255
        image = Image.fromarray((np.asarray(image).clip(0, 1) * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def read_labels(path: str | Path) -> np.ndarray:
    """Read the grey values, palette indices or colours of a label image, (H, W) or (H, W, C).

    Raises:
        UserError: the file does not exist, is not an image, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    path = existing_file(path)
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError):
        raise UserError(f"{path} is no label image, or is damaged") from None


def read_squares(paths: Sequence[str | Path], size: int, channels: int) -> Tensor:
    """Read image files as pixels in [0, 1], (N, channels, size, size); one channel means luminance.

    An image that is not square is padded to a square with the colour of its top left pixel.

    Raises:
        UserError: as `read` does.
    """
    return torch.stack([_square(read(path), size, channels) for path in paths])


def _square(image: "Image", size: int, channels: int) -> Tensor:
    from PIL import Image, ImageOps

    image = image.convert("L" if channels == 1 else "RGB")
    corner = cast(int | tuple[int, ...], image.getpixel((0, 0)))  # whole numbers in the modes L and RGB
    framed = ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=corner)
    pixels = torch.from_numpy(np.array(framed, dtype=np.float32) / 255)
    return pixels.view(size, size, channels).permute(2, 0, 1)
