"""Augmentation of batches on their device: images (B, C, H, W) in, images of that shape out.

Each function draws from torch's global random numbers, which `lib.train.fit` seeds for every update.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("shift", "rotate", "scale", "flip", "erase")

ROTATE_DEGREES = 10.0
SCALE_SHARE = 0.1


def augmentation(
    names: Sequence[str], shift_pixels: int = 2, background: float = 0.0
) -> Callable[[Tensor], Tensor] | None:
    """Return the augmentations `names`, one after the other, as one function; None for none.

    Args:
        names: some of `NAMES`.
        shift_pixels: how far `shift` goes.
        background: the value of a black pixel, which is moved in from outside the image.
    """
    steps: dict[str, Callable[[Tensor], Tensor]] = {"flip": flip, "erase": erase}
    chosen = [step for name, step in steps.items() if name in names]
    if "rotate" in names or "scale" in names:
        reach = {"shift": shift_pixels, "rotate": ROTATE_DEGREES, "scale": SCALE_SHARE}
        chosen.insert(0, partial(warp, **{name: reach[name] for name in names if name in reach}))
    elif "shift" in names:
        chosen.insert(0, partial(shift, pixels=shift_pixels))
    if not chosen:
        return None

    def augment(images: Tensor) -> Tensor:
        images = images - background if background else images
        for step in chosen:
            images = step(images)
        return images + background if background else images

    return augment


def shift(images: Tensor, pixels: int = 2) -> Tensor:
    """Move each image by up to `pixels` whole pixels along both axes."""
    batch, _, height, width = images.shape
    windows = F.pad(images, [pixels] * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * pixels + 1, (2, batch), device=images.device)
    return windows[torch.arange(batch, device=images.device), :, down, right]


def warp(images: Tensor, shift: float = 0, rotate: float = 0, scale: float = 0) -> Tensor:
    """Move, turn and stretch each image, which is square, in one go; sampled bilinearly.

    Args:
        shift: up to so many pixels along both axes.
        rotate: up to so many degrees about the centre, either way.
        scale: up to this share larger or smaller along each axis.
    """
    (batch, _, height, width), device = images.shape, images.device

    def uniform(reach: float, *shape: int) -> Tensor:
        return (torch.rand(*shape, batch, device=device) * 2 - 1) * reach

    angle = uniform(math.radians(rotate))
    x_scale, y_scale = uniform(scale, 2) + 1
    x_shift, y_shift = uniform(2 * shift / width), uniform(2 * shift / height)  # the grid is 2 wide
    cosine, sine = angle.cos(), angle.sin()
    theta = [cosine * x_scale, -sine * y_scale, x_shift, sine * x_scale, cosine * y_scale, y_shift]
    grid = F.affine_grid(torch.stack(theta, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def flip(images: Tensor) -> Tensor:
    """Mirror every other image, by chance, left to right."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def erase(images: Tensor) -> Tensor:
    """Blacken a square of a quarter to a half of the side, in every other image by chance.

    After cutout (DeVries & Taylor 2017, arXiv:1708.04552); the square lies wholly inside the image.
    """
    batch, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, 1, 1, 1, device=images.device) * (high - low) + low

    side = uniform(0.25, 0.5) * min(height, width)
    top, left = uniform(0, 1) * (height - side), uniform(0, 1) * (width - side)
    row = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    return images.masked_fill(inside & (uniform(0, 1) < 0.5), 0.0)
