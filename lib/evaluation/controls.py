"""Controls: maps that know nothing of the network's answer, which a method must beat to be believed.

Two more controls need the network and other images, and are made where these are known: the map of another
image, and the map of the network with random weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def noise(pixels: Tensor, seed: int) -> Tensor:
    """Return a map (H, W) of independent uniform values."""
    return torch.rand(pixels.shape[-2:], generator=torch.Generator().manual_seed(seed))


def edges(pixels: Tensor) -> Tensor:
    """Return the magnitude (H, W) of the gradient of an image (C, H, W), by Sobel's operator.

    It looks like many explanations, because edges stand out in both (Adebayo et al. 2018, § 5).
    """
    grey = F.pad(pixels.float().cpu().mean(0)[None, None], [1, 1, 1, 1], mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    found = F.conv2d(grey, torch.stack([across, across.T])[:, None])[0]
    return found.square().sum(0).sqrt()


def centre(size: tuple[int, int]) -> Tensor:
    """Return a Gaussian (H, W) around the middle, whose standard deviation is a quarter of each side."""
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in size)
    return torch.exp(-(rows.square()[:, None] + columns.square()) / 2)
