"""Augmentation of batches on their device: images (B, C, H, W) in, images of the same shape (or crops) out.

Every function draws from torch's global generator, which `lib.training.fit.fit` seeds for every update.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATE_DEGREES = 10.0
SCALE_SHARE = 0.1
AFFINE = {"rotate": 15.0, "scale": 0.1, "shear": 0.15}
AFFINE_SHIFT_SHARE = 0.1
CROP_AREA = (0.35, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
COLOR_SHARE = 0.4
LUMINANCE = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


def augmentation(
    names: Sequence[str],
    shift_pixels: int = 2,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    window: int | None = None,
) -> Callable[[Tensor], Tensor] | None:
    """Compose the augmentations `names` into one function; return None if there is nothing to do.

    Args:
        names: some of `shift`, `rotate`, `scale`, `affine`, `crop`, `flip`, `color`, `erase`.
        shift_pixels: largest displacement of `shift`, in pixels.
        mean, std: per channel. The function takes and returns images scaled as (pixel − mean) / std, but
            augments them as pixels, so that the area moved in from outside is black.
        window: crop a random window of this side; `shift` is then left out, because the crop already shifts.
    """
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "crop": crop,
        "flip": flip,
        "color": color,
        "erase": erase,
    }
    if window:
        names = [name for name in names if name != "shift"]
    chosen = [*_moves(names, shift_pixels), *(step for name, step in steps.items() if name in names)]
    if window:
        chosen.insert(0, partial(random_windows, height=window, width=window))
    if not chosen:
        return None
    scaled = set(mean) != {0} or set(std) != {1}

    def augment(images: Tensor) -> Tensor:
        offset, factor = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
        images = images * factor + offset if scaled else images
        for step in chosen:
            images = step(images)
        return (images - offset) / factor if scaled else images

    return augment


def _moves(names: Sequence[str], shift_pixels: int) -> list[Callable[[Tensor], Tensor]]:
    """Return the geometric augmentations as at most one function, so that images are resampled only once.

    `shift` on its own moves by whole pixels and needs no interpolation; all other cases use `warp`.
    """
    reaches = {"shift": shift_pixels, "rotate": ROTATE_DEGREES, "scale": SCALE_SHARE}
    reach = {name: reaches[name] for name in names if name in reaches}
    if "affine" in names:
        return [partial(_affine, shift=reach.get("shift", 0))]
    if "rotate" in names or "scale" in names:
        reach = {name: reach.get(name, 0) for name in reaches}
        return [partial(warp, shift=reach["shift"], rotate=reach["rotate"], scale=reach["scale"])]
    return [partial(shift, pixels=shift_pixels)] if "shift" in names else []


def shift(images: Tensor, pixels: int = 2) -> Tensor:
    """Translate each image by a random whole number of pixels, up to `pixels` along both axes."""
    height, width = images.shape[2:]
    return random_windows(F.pad(images, [pixels] * 4), height, width)


def random_windows(images: Tensor, height: int, width: int) -> Tensor:
    """Crop a random window of the given size from each image, (B, C, height, width)."""
    windows = images.unfold(2, height, 1).unfold(3, width, 1)
    down = torch.randint(windows.shape[2], (len(images),), device=images.device)
    right = torch.randint(windows.shape[3], (len(images),), device=images.device)
    return windows[torch.arange(len(images), device=images.device), :, down, right]


def _affine(images: Tensor, shift: float) -> Tensor:
    return warp(images, shift=max(shift, AFFINE_SHIFT_SHARE * images.shape[-1]), **AFFINE)


def warp(images: Tensor, shift: float = 0, rotate: float = 0, scale: float = 0, shear: float = 0) -> Tensor:
    """Translate, rotate, scale and shear each (square) image by one affine map, sampled bilinearly.

    The affine map takes output coordinates to input coordinates, both in [−1, 1], and is the product

        A = R(angle) · [[1, slant], [0, 1]] · diag(x_scale, y_scale), followed by a translation.

    Args:
        shift: largest translation along either axis, in pixels.
        rotate: largest rotation about the centre in either direction, in degrees.
        scale: largest relative change of size, drawn independently for each axis.
        shear: largest horizontal shear, as a share of the height.
    """
    (batch, _, _, width), device = images.shape, images.device

    def uniform(reach: float, *shape: int) -> Tensor:
        return (torch.rand(*shape, batch, device=device) * 2 - 1) * reach

    angle = uniform(math.radians(rotate))
    x_scale, y_scale = uniform(scale, 2) + 1
    x_shift, y_shift = uniform(2 * shift / width, 2)  # the grid spans [−1, 1]: its width is 2
    slant = uniform(shear) if shear else torch.zeros_like(angle)
    cosine, sine = angle.cos(), angle.sin()
    # The product, with R(angle) = [[cos, −sin], [sin, cos]] and shear · scale = [[x, slant · y], [0, y]].
    across = [cosine * x_scale, (cosine * slant - sine) * y_scale, x_shift]
    down = [sine * x_scale, (sine * slant + cosine) * y_scale, y_shift]
    return _sampled(images, torch.stack(across + down, 1))


def _sampled(images: Tensor, theta: Tensor) -> Tensor:
    """Sample images (B, C, H, W) at the affine maps theta (B, 6); points outside the image are black."""
    grid = F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def crop(images: Tensor) -> Tensor:
    """Enlarge a random window of each image to the full size (Szegedy et al. 2015, arXiv:1409.4842, § 6).

    The window covers a share `CROP_AREA` of the image and has an aspect ratio (width / height) in
    `CROP_ASPECT`, drawn uniformly on a logarithmic scale so that r and 1/r are equally likely.
    """

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:
        return torch.rand(len(images), device=images.device) * (high - low) + low

    area, aspect = uniform(*CROP_AREA), uniform(*map(math.log, CROP_ASPECT)).exp()
    # From width · height = area and width / height = aspect: width² = area · aspect, height² = area / aspect.
    # A large window of a long shape does not fit into the image: it is cut to the image's side.
    width, height = ((area * ratio).sqrt().clamp(max=1) for ratio in (aspect, 1 / aspect))
    # In the grid's coordinates the window is 2·width wide; its centre may be up to 1 − width off the middle.
    x, y = uniform(width - 1, 1 - width), uniform(height - 1, 1 - height)
    zero = torch.zeros_like(x)
    return _sampled(images, torch.stack([width, zero, x, zero, height, y], 1))


def flip(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def color(images: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of pixels in [0, 1], each by a factor 1 ± `COLOR_SHARE`.

    Contrast interpolates between the image and its mean luminance, saturation between the image and its
    luminance; factors above 1 extrapolate.
    """

    def factor() -> Tensor:
        reach = torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1
        return 1 + COLOR_SHARE * reach

    images = images * factor()
    grey = _luminance(images).mean((2, 3), keepdim=True)
    images = torch.lerp(grey, images, factor())
    return torch.lerp(_luminance(images), images, factor()).clamp(0, 1)


def _luminance(images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W); images of one channel are returned as they are."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMINANCE).view(-1, 1, 1)).sum(1, keepdim=True)


def erase(images: Tensor) -> Tensor:
    """Blacken a random square in each image with probability 1/2 (DeVries & Taylor 2017, arXiv:1708.04552).

    The square's side is a quarter to a half of the image's shorter side. Unlike in the paper, the square
    always lies wholly inside the image.
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
