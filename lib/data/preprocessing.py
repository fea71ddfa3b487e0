"""From an image file to what a network takes: the crop that it sees, and the scale of its numbers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lib.data import photographs
from lib.runtime.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_PIXELS = 2**25  # of a photograph that was resized and is not yet cropped: 100 MB


@dataclass(frozen=True)
class Preprocessing:
    """How a network's inputs were prepared when it was trained; a checkpoint keeps it as a dict.

    Attributes:
        size: side length of the input in pixels.
        channels: 1 for luminance, 3 for colours.
        mean, std: of each channel; the network takes (pixel − mean) / std of pixels in [0, 1].
        resize: what the shorter side of a photograph is scaled to before the middle is cropped; None if
            photographs are framed to a square instead, as drawings of digits are.
        interpolation: `bilinear` or `bicubic`, of that scaling.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, saved: Mapping[str, Any], source: str | Path) -> "Preprocessing":
        """Return what a checkpoint keeps under `preprocessing`; `source` names it in a complaint.

        Raises:
            UserError: something is missing, or is not what it should be.
        """
        try:
            size, channels = int(saved["size"]), int(saved["channels"])
            mean, std = (_per_channel(saved[key], channels) for key in ("mean", "std"))
            resize = saved.get("resize")
            interpolation = str(saved.get("interpolation", "bilinear"))
            sound = min(size, *std) > 0 and channels in (1, 3) and interpolation in ("bilinear", "bicubic")
            sound = sound and (resize is None or int(resize) >= size) and all(map(math.isfinite, mean + std))
        except (KeyError, TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise UserError(
                f"{source} does not say how its inputs were prepared: its preprocessing is {saved!r}"
            )
        return cls(size, channels, mean, std, None if resize is None else int(resize), interpolation)

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain values, for a checkpoint."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def read(self, path: str | Path) -> Tensor:
        """Return an image file as pixels in [0, 1], (channels, size, size): exactly what the network sees.

        Raises:
            UserError: as `photographs.read` does; the image is too long for its width.
        """
        if self.resize is None:
            return photographs.read_squares([path], self.size, self.channels)[0]
        return self._crop(photographs.read(path), path)

    def _crop(self, image: "Image", path: str | Path) -> Tensor:
        # What torchvision's own presets do, on the photograph and not on a tensor: the two differ a little.
        from torchvision.transforms import functional

        short, long = sorted(image.size)
        if self.resize * self.resize * long > _MOST_PIXELS * short:
            raise UserError(f"{path} is too long for its width: {image.width}×{image.height} pixels")
        if self.channels == 1:
            image = image.convert("L")
        interpolation = functional.InterpolationMode(self.interpolation)
        image = functional.center_crop(functional.resize(image, [self.resize], interpolation), [self.size])
        values = np.array(image, dtype=np.float32).reshape(self.size, self.size, self.channels)
        return torch.from_numpy(values / 255).permute(2, 0, 1).contiguous()


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """Return a number for each channel, where there may be one for all of them."""
    numbers = tuple(float(value) for value in values)
    numbers = numbers * channels if len(numbers) == 1 else numbers
    if len(numbers) != channels:
        raise ValueError(f"{len(numbers)} numbers for {channels} channels")
    return numbers
