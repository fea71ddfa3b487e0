"""Image files of any usual format, read as a viewer would show them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.data.image_decoding import decoded, upright, warn_once

if TYPE_CHECKING:
    from PIL.Image import Image


def read(path: str | Path) -> "Image":
    """Read an image file in RGB: rotated as its EXIF data says, transparency over white.

    Raises:
        UserError: the file does not exist, is not an image, is damaged or cut short, or is a decompression
            bomb (more pixels than Pillow's `MAX_IMAGE_PIXELS`).
    """
    return decoded(path, lambda image: _rgb(upright(image), path))


def _rgb(image: "Image", path: str | Path) -> "Image":
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # convert() would clip these at 255
        image = Image.fromarray(_eight_bits(np.asarray(image, dtype=np.float64), image.mode, path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str, path: str | Path) -> np.ndarray:
    """Return grey values of 16 or 32 bits, or of floating point, as 0 to 255.

    Their scale is that of the usual ranges: [0, 1] and [0, 255] for floats, [0, 65535] for integers. Values
    of any other range are stretched from black to white, with a warning.
    """
    finite = np.isfinite(values)
    if not finite.all():
        count = int((~finite).sum())
        warn_once(f"{path}: {count:,} of {finite.size:,} pixels are no finite numbers: shown as its darkest")
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    low, high = float(values.min()), float(values.max())
    if mode == "F":
        # Slightly above 1 is a range of its own, too: as one of 255 it would be nearly black.
        white = 1 if high <= 1 else 255 if 16 < high <= 255 else 0
    else:
        white = 255 if mode == "I" and high <= 255 else 65535 if high <= 65535 else 0
    if low < 0 or not white:
        warn_once(f"{path}: its values reach from {low:.4g} to {high:.4g}, shown from black to white")
        # Halved first, because the range of the largest floats is infinite.
        return ((values / 2 - low / 2) / max(high / 2 - low / 2, 1e-300) * 255).round().astype(np.uint8)
    return (values / white * 255).astype(np.uint8)


def read_labels(path: str | Path) -> np.ndarray:
    """Read the grey values, palette indices or colours of a label image, (H, W) or (H, W, C).

    Raises:
        UserError: the file does not exist, is not an image, is damaged, or is a decompression bomb.
    """
    return decoded(path, np.asarray)
