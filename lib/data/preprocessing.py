"""Preprocessing of images for a network: resizing, cropping and normalisation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lib.data import fitting, photographs
from lib.runtime.errors import UserError, warn
from lib.runtime.spelling import printable

# A drawing on paper is darker than its border by this or more; thin strokes cover 3 % of the paper.
_CLEAR = 0.02


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a network was trained with; checkpoints store it as a dict.

    Attributes:
        size: side length of the input in pixels.
        channels: 1 for luminance, 3 for RGB.
        mean, std: per channel; the input is (pixel − mean) / std, with pixels in [0, 1].
        resize: length in pixels to which an image's shorter side is scaled before the centre crop; None if
            images are padded to a square instead of cropped (as drawings of digits are).
        interpolation: interpolation of that scaling, `bilinear` or `bicubic`.
        light_on_dark: whether the training images are grey and light on a dark ground, as MNIST's are; a
            photograph of a drawing on paper is a negative of these.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"
    light_on_dark: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, saved: Mapping[str, Any], source: str | Path) -> "Preprocessing":
        """Make a `Preprocessing` of the dict in a checkpoint; error messages name `source`.

        Raises:
            UserError: an entry is missing or invalid.
        """
        try:
            size, channels = int(saved["size"]), int(saved["channels"])
            mean, std = (_per_channel(saved[key], channels) for key in ("mean", "std"))
            resize = saved.get("resize")
            interpolation = str(saved.get("interpolation", "bilinear"))
            sound = min(size, *std) > 0 and channels in (1, 3) and interpolation in ("bilinear", "bicubic")
            # Checkpoints of earlier versions do not say it; their grey data sets were all light on dark.
            light = bool(saved.get("light_on_dark", channels == 1))
            sound = sound and (resize is None or int(resize) >= size) and all(map(math.isfinite, mean + std))
        except (KeyError, TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise UserError(
                f"{source} does not say how its inputs were prepared: its preprocessing is {saved!r}"
            )
        return cls(size, channels, mean, std, None if resize is None else int(resize), interpolation, light)

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values, for a checkpoint."""
        plain = {"mean": list(self.mean), "std": list(self.std), "light_on_dark": int(self.light_on_dark)}
        return asdict(self) | plain

    def read(self, path: str | Path) -> Tensor:
        """Read an image file as pixels in [0, 1], (channels, size, size): exactly the crop the network sees.

        Raises:
            UserError: as `photographs.read` does, or the image is too long for its width.
        """
        return fitting.fitted(photographs.read(path), self, fitting.AS_TRAINED, path).pixels

    def looks_negative(self, image: Tensor) -> bool:
        """Return whether an image (1, H, W) looks like a negative of the training images."""
        return self.light_on_dark and _contrast(image) < -_CLEAR


def warn_of_negatives(names: Sequence[str], *, inverted: bool) -> None:
    """Warn that the images called `names` look like negatives: --invert is missing, or was not needed."""
    if not names:
        return
    looks = f"and {len(names) - 1} more look" if len(names) > 1 else "looks"
    what = "leave out --invert" if inverted else "give --invert"
    warn(
        f"{printable(names[0])} {looks} dark on light, and the network has learnt from images that are light "
        f"on dark: {what}, unless that is meant"
    )


def is_light_on_dark(images: Tensor) -> bool:
    """Return whether grey images (…, H, W) in [0, 1] are darker at their borders than inside, on average."""
    return _contrast(images) > 0


def _contrast(images: Tensor) -> float:
    """Return how much lighter the inside of grey images (…, H, W) is than their borders, on average."""
    width = max(1, images.shape[-1] // 14)
    inside = images[..., width:-width, width:-width]
    if not inside.numel():
        return 0.0
    border = (images.double().sum() - inside.double().sum()) / (images.numel() - inside.numel())
    return float(inside.double().mean() - border)


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """Return one number per channel; a single number counts for all channels."""
    numbers = tuple(float(value) for value in values)
    numbers = numbers * channels if len(numbers) == 1 else numbers
    if len(numbers) != channels:
        raise ValueError(f"{len(numbers)} numbers for {channels} channels")
    return numbers
