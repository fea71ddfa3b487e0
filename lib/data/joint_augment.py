"""Joint augmentation of images and masks: the same window of both, and colours of the image alone.

Everything is drawn from torch's global generator, which `lib.training.fit.fit` seeds for every update.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import augment

NAMES = ("crop", "flip", "scale", "color")
# Objects of a street are seen in any distance.
SCALE = (0.6, 1.6)
ASPECT = 1.1  # largest ratio by which `scale` changes the proportions
GAMMA = 0.5  # `color` also takes pixels to a power between e^−0.5 and e^0.5: dusk and noon


@dataclass(frozen=True)
class JointAugmentation:
    """Makes a batch of windows of one size of images and masks of any sizes.

    Attributes:
        names: some of `NAMES`: `crop` takes windows of the images in their own size, otherwise a window shows
            the whole image; `scale` enlarges or reduces by a factor in `SCALE`; `flip` mirrors one in two;
            `color` changes brightness, contrast, saturation and gamma.
        window: height and width of the windows in pixels.
        ignore: label outside of the image.
        ground: colour outside of the image, as the mean of the pixels in [0, 1].
    """

    names: Sequence[str]
    window: tuple[int, int]
    ignore: int
    ground: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __call__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, h, w) in [0, 1] and masks (B, h, w), int64, of pairs of bytes."""
        windows = [self._window(image, mask) for image, mask in pairs]
        images, masks = (torch.stack(each) for each in zip(*windows, strict=True))
        if "color" in self.names:
            images = augment.color(images)
            gamma = ((torch.rand(len(images), 1, 1, 1) * 2 - 1) * GAMMA).exp()
            images = images.clamp(min=1e-4) ** gamma
        return images, masks

    def _window(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return one window: the image sampled bilinearly, the mask at the nearest pixel."""
        theta = self._map(mask.shape[0], mask.shape[1])
        grid = F.affine_grid(theta[None], [1, 3, *self.window], align_corners=False)
        # Relative to the ground, which is then what lies outside.
        ground = torch.tensor(self.ground).view(3, 1, 1)
        pixels = image.float() / 255 - ground
        found = F.grid_sample(pixels[None], grid, align_corners=False)[0] + ground
        return found, self._labels(mask, grid[0])

    def _labels(self, mask: Tensor, grid: Tensor) -> Tensor:
        """Return the labels (h, w) at a grid (h, w, 2) of coordinates in [−1, 1]."""
        height, width = mask.shape
        sizes = torch.tensor([width, height])
        places = ((grid + 1) * sizes / 2 - 0.5).round().long()
        inside = ((places >= 0) & (places < sizes)).all(-1)
        columns, rows = places[..., 0].clamp(0, width - 1), places[..., 1].clamp(0, height - 1)
        labels = mask[rows, columns].long()
        return labels.where(inside, self.ignore)

    def _map(self, height: int, width: int) -> Tensor:
        """Return the affine map (2, 3) from coordinates of the window to those of the image, in [−1, 1]."""
        scale, aspect = 1.0, 1.0
        if "crop" not in self.names:
            scale = min(self.window[0] / height, self.window[1] / width)
        if "scale" in self.names:
            low, high = map(math.log, SCALE)
            scale *= math.exp(_uniform(low, high))
            aspect = math.exp(_uniform(-math.log(ASPECT), math.log(ASPECT)) / 2)
        # Half-lengths of the window in the image's coordinates.
        tall = self.window[0] / (scale * aspect * height)
        wide = self.window[1] * aspect / (scale * width)
        down, right = (_uniform(-abs(1 - half), abs(1 - half)) for half in (tall, wide))
        mirrored = "flip" in self.names and bool(torch.rand(()) < 0.5)
        return torch.tensor([[-wide if mirrored else wide, 0.0, right], [0.0, tall, down]])


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
