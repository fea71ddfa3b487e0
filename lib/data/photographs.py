"""Image files of any kind, read the way a person sees them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import UserError
from lib.runtime.files import existing_file

if TYPE_CHECKING:
    from PIL.Image import Image


def read(path: str | Path) -> "Image":
    """Return the image file `path` in RGB: turned upright as its EXIF says, transparency over white.

    Raises:
        UserError: no such file, no image, damaged, cut short, or so large that it is a trap.
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
        raise UserError(f"{path} is not an image in a format that is known here") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from None


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / max(values.max(), 65535) * 255).astype(np.uint8))
    elif image.mode == "F" and np.asarray(image).max() <= 1:  # convert() would take them for 0 to 255
        image = Image.fromarray((np.asarray(image).clip(0, 1) * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def read_labels(path: str | Path) -> np.ndarray:
    """Return the grey values, palette entries or colours of a label image, (H, W) or (H, W, C).

    Raises:
        UserError: no such file, no image, or a damaged one.
    """
    from PIL import Image, UnidentifiedImageError

    path = existing_file(path)
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError):
        raise UserError(f"{path} is no label image, or is damaged") from None


def read_squares(paths: Sequence[str | Path], size: int, channels: int) -> Tensor:
    """Return image files as pixels in [0, 1], (N, channels, size, size); 1 channel is their luminance.

    An image that is not square is framed to one with the colour of its corner.

    Raises:
        UserError: as `read` does.
    """
    return torch.stack([_square(read(path), size, channels) for path in paths])


def _square(image: "Image", size: int, channels: int) -> Tensor:
    from PIL import Image, ImageOps

    image = image.convert("L" if channels == 1 else "RGB")
    framed = ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=image.getpixel((0, 0)))
    pixels = torch.from_numpy(np.array(framed, dtype=np.float32) / 255)
    return pixels.view(size, size, channels).permute(2, 0, 1)
