"""Ways to make a network's input of a photograph: crop, pad, stretch, or keep its own proportions.

Each is a scaling and a shift of both axes, so a box in the photograph says where the input lies in it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib.data.preprocessing import Preprocessing

_MOST_PIXELS = 2**25  # of an image after resizing: 100 MB in RGB
# Side of the copy of a photograph on which maps are drawn; a page shows no more of it.
SHOWN_SIDE = 1000


@dataclass(frozen=True)
class Fit:
    """How a photograph becomes an input.

    Attributes:
        kind: `crop`, the centre after scaling the shorter side, as networks for photographs are trained;
            `pad`, the whole photograph in a square, the rest in the mean colour of the training images, which
            is zero after normalisation; `stretch`, the whole photograph with both sides scaled to the square;
            `native`, the whole photograph in its own proportions. None: as the network was trained, which is
            `crop` for networks for photographs, `native` for those that segment them, and `pad` with the
            drawing's ground for those for drawings.
        longest_side: longest side in pixels of a `native` input; None for the side of the network's inputs.
    """

    kind: str | None = None
    longest_side: int | None = None


AS_TRAINED = Fit()


class Box(NamedTuple):
    """Where an input lies in its photograph, in pixels of the photograph; it may reach beyond its edges.

    Column u of an input of w columns is at column left + (u + ½) (right − left) / w − ½ of the photograph,
    both counted from 0; rows likewise.
    """

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, factor: float) -> "Box":
        """Return the box in a photograph scaled by `factor`."""
        return Box(*(factor * each for each in self))


class Fitted(NamedTuple):
    """An input (C, H, W) in [0, 1], and where it lies in its photograph."""

    pixels: Tensor
    box: Box


def fitted(image: "Image", how: "Preprocessing", fit: Fit, path: str | Path) -> Fitted:
    """Return the input that `how` and `fit` make of an image in RGB; error messages name `path`.

    Raises:
        UserError: the image is too long for its width to be scaled.
    """
    image = image.convert("L") if how.channels == 1 else image
    kind = fit.kind or ("native" if how.native else "crop" if how.resize else "pad")
    if kind == "crop":
        return _cropped(image, how, path)
    if kind == "pad":
        return _padded(image, how)
    size = (how.size, how.size) if kind == "stretch" else _native(image, fit.longest_side or how.size)
    return Fitted(as_pixels(_scaled(image, size, how)), Box(0, 0, *map(float, image.size)))


def _native(image: "Image", side: int) -> tuple[int, int]:
    longest = max(image.size)
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    return width, height


def _scaled(image: "Image", size: tuple[int, int], how: "Preprocessing") -> "Image":
    from PIL import Image

    bicubic = how.interpolation == "bicubic"
    return image.resize(size, Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)


def _cropped(image: "Image", how: "Preprocessing", path: str | Path) -> Fitted:
    # Resize the PIL image and not a tensor, as torchvision's presets do: the two differ slightly.
    from torchvision.transforms import functional

    resize, size = how.resize or how.size, how.size
    short, long = sorted(image.size)
    if resize * resize * long > _MOST_PIXELS * short:
        raise UserError(f"{path} is too long for its width: {image.width}×{image.height} pixels")
    interpolation = functional.InterpolationMode(how.interpolation)
    scaled = functional.resize(image, [resize], interpolation)
    # The corner that center_crop cuts at.
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    x, y = image.width / scaled.width, image.height / scaled.height
    box = Box(left * x, top * y, (left + size) * x, (top + size) * y)
    return Fitted(as_pixels(functional.center_crop(scaled, [size])), box)


def _padded(image: "Image", how: "Preprocessing") -> Fitted:
    from PIL import Image, ImageOps

    size = how.size
    if how.resize is None:  # drawings: the paper goes on
        ground = cast(int | tuple[int, ...], image.getpixel((0, 0)))  # whole numbers in the modes L and RGB
    else:
        colour = tuple(min(255, max(0, round(255 * each))) for each in how.mean)
        ground = colour if how.channels == 3 else colour[0]
    method = Image.Resampling.BICUBIC if how.interpolation == "bicubic" else Image.Resampling.BILINEAR
    framed = ImageOps.pad(image, (size, size), method, color=ground)
    inside = ImageOps.contain(image, (size, size), method).size  # only its size is needed, from one rule
    left, top = (round((size - length) / 2) for length in inside)
    x, y = (own / max(length, 1) for own, length in zip(image.size, inside, strict=True))
    return Fitted(as_pixels(framed), Box(-left * x, -top * y, (size - left) * x, (size - top) * y))


def as_pixels(image: "Image") -> Tensor:
    """Return an image in the modes L or RGB as pixels (1 or 3, H, W) in [0, 1]."""
    values = np.array(image, dtype=np.float32) / 255
    return torch.from_numpy(values.reshape(image.height, image.width, -1)).permute(2, 0, 1).contiguous()


class Original(NamedTuple):
    """A photograph as a page shows it, and where the input lies in it.

    Attributes:
        pixels: (H, W, 3) uint8, the photograph, scaled such that its longest side has at most `SHOWN_SIDE`
            pixels, and such that the input is not larger than its place, if that can be.
        box: where the input lies in the photograph of the file, in its own pixels.
        scale: length of a pixel of the file in `pixels`.
    """

    pixels: np.ndarray
    box: Box
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the file's photograph, to a pixel of `pixels`."""
        height, width = (math.ceil(length / self.scale) for length in self.pixels.shape[:2])
        return height, width

    @property
    def shown_box(self) -> Box:
        """Where the input lies in `pixels`."""
        return self.box.scaled(self.scale)


def original(image: "Image", found: Fitted) -> Original:
    """Return the photograph, in RGB, of which `found` was made."""
    from PIL import Image

    width = found.box.right - found.box.left
    finest = max(1.0, found.pixels.shape[2] / max(width, 1e-9))
    scale = min(SHOWN_SIDE / max(image.size), finest)
    if scale != 1:
        size = tuple(max(1, round(scale * length)) for length in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return Original(np.array(image, dtype=np.uint8), found.box, scale)
