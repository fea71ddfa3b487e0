"""Baselines: images without information, which replace the parts of an image that are taken away."""

from collections.abc import Callable

import torch
from torch import Tensor

KINDS = ("black", "grey", "mean", "blur", "noise")

_ROUNDING = 1e-6  # of pixels in [0, 1], whose steps are of 1/255
# Standard deviation of the blur as a share of the image's side: only the colour of an object is left.
_BLUR = 1 / 14


def baseline(kind: str, pixels: Tensor, *, seed: int = 42) -> Tensor:
    """Return the baseline of images (B, C, H, W), or of one image (C, H, W), with values in [0, 1].

    black, grey   0 or ½ everywhere
    mean          the image's own mean colour
    blur          the image, blurred (Gaussian)
    noise         drawn uniformly and independently for every number (Sturmfels et al. 2020)

    Where it differs from the image by rounding alone, it is the image: of an image of one colour, its blur is
    itself, and there is nothing to explain.

    Args:
        kind: one of `KINDS`.
        pixels: the images, with values in [0, 1].
        seed: seed of the noise, which is the same on every device.
    """
    made = _MAKERS[kind](pixels, seed)
    return torch.where((made - pixels).abs() < _ROUNDING, pixels, made)


def _mean(pixels: Tensor, _seed: int) -> Tensor:
    return pixels.mean((-2, -1), keepdim=True).expand_as(pixels).contiguous()


def _blur(pixels: Tensor, _seed: int) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    sigma = _BLUR * min(pixels.shape[-2:])
    return gaussian_blur(pixels, 2 * round(2.5 * sigma) + 1, sigma)


def _noise(pixels: Tensor, seed: int) -> Tensor:
    drawn = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed), dtype=pixels.dtype)
    return drawn.to(pixels.device)


_MAKERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "black": lambda pixels, _seed: torch.zeros_like(pixels),
    "grey": lambda pixels, _seed: torch.full_like(pixels, 0.5),
    "mean": _mean,
    "blur": _blur,
    "noise": _noise,
}
