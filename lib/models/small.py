"""Convolutional networks for small photographs, such as those of CIFAR-10."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.runtime.errors import UserError

_WHITENED_AT_ONCE = 2**20  # pixels per part in `whiten`
WHITENING_FLOOR = 5e-4  # added to variances, because components with a tiny variance are mostly noise


class SimpleCNN(nn.Sequential):
    """Four 3×3 convolutions, each followed by a ReLU and a max-pool, and one linear layer.

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: channels of the images.
        size: side length of the images in pixels, 16 or more.
        bn: whether each convolution is followed by batch normalisation.
        dropout: share of the features dropped in training after every pool but the first.
    """

    stages = ("pool1", "pool2", "pool3", "pool4", "output")
    WIDTHS = (32, 64, 128, 128)

    def __init__(
        self, classes: int = 10, channels: int = 3, size: int = 32, bn: bool = False, dropout: float = 0.0
    ):
        if size < 16:
            raise UserError(f"simple-cnn takes images of 16 px or more, not of {size}")
        layers: dict[str, nn.Module] = {}
        for number, (inputs, outputs) in enumerate(
            zip((channels, *self.WIDTHS), self.WIDTHS, strict=False), 1
        ):
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not bn)
            if bn:
                layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU()
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            if dropout and number > 1:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(self.WIDTHS[-1] * (size // 16) ** 2, classes)
        super().__init__(OrderedDict(layers))
        self.to(memory_format=torch.channels_last)


class FastCNN(nn.Sequential):
    """A network of seven convolutions, designed for the best accuracy per second of training.

    Reasons for its design:

    - Large maps cost most of the time. So the first layer's kernel has only 2×2 pixels, the second layer is
      pooled at once (before its batch normalisation and GELU, which then have a quarter of the work), and
      four of the seven convolutions run at 15×15 or 7×7 pixels. There a multiplication costs least, because
      these layers are wide enough to keep the processor's matrix units busy.
    - The first layer is not trained: see `whiten`. Its batch normalisation is trained: without it a tenth of
      the work would be saved, but two seeds were 0.9 and 0.4 points worse on CIFAR-10 after 14 of 16 epochs.
      The other convolutions start close to the identity.
    - All pooling is by the maximum, also the global pooling of the last map, which keeps the linear layer
      small and lets the network accept images of any size.
    - Batch normalisation precedes every GELU and allows a high learning rate; the layers before it then need
      no bias.

    Based on the networks of Page, "How to train your ResNet" (2019), and Jordan (2024, arXiv:2404.00498).

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: channels of the images.
        size: side length of the images in pixels, 16 or more.
        width: channels of the first of the three groups; the others have four times as many.
    """

    conv0: nn.Conv2d

    stages = ("gelu2", "gelu4", "gelu6", "pool")

    def __init__(self, classes: int = 10, channels: int = 3, size: int = 32, width: int = 48):
        if size < 16:
            raise UserError(f"fast-cnn takes images of 16 px or more, not of {size}")
        first = 8 * channels  # two filters for each number in a patch of 2×2 pixels
        layers: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(channels, first, 2, bias=False).requires_grad_(False),
            "bn0": nn.BatchNorm2d(first),
            "gelu0": nn.GELU(),
        }
        widths = (first, width, 4 * width, 4 * width)
        for group in range(3):
            inputs, outputs = widths[group : group + 2]
            for number in (2 * group + 1, 2 * group + 2):
                layers[f"conv{number}"] = _near_a_copy(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
                if number % 2:
                    layers[f"pool{number}"] = nn.MaxPool2d(2)
                layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
                layers[f"gelu{number}"] = nn.GELU()
                inputs = outputs
        layers["pool"] = nn.AdaptiveMaxPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(4 * width, classes)
        super().__init__(OrderedDict(layers))
        # With channels last, convolutions of many channels run 1.6 times as fast on a CPU; in bf16 and on
        # CUDA too.
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer's filters to whitened principal components of 2×2 patches, and their negatives.

        With E Λ Eᵀ the eigendecomposition of the patches' second moments (1/n) PᵀP, the filters are the rows
        of (Λ + ε)^(−1/2) Eᵀ. Their outputs are uncorrelated and of similar size, unlike neighbouring pixels
        and colours: the next layers learn faster, and these filters need no training.

        Args:
            images: (B, C, H, W), scaled as the network takes them.
        """
        # On the CPU, because not every device has float64; in parts, because patches take four times the
        # memory of the pixels.
        numbers = 4 * images.shape[1]
        products, count = torch.zeros(numbers, numbers, dtype=torch.float64), 0
        for part in images.cpu().float().split(max(1, _WHITENED_AT_ONCE // images[0, 0].numel())):
            patches = F.unfold(part, 2).transpose(1, 2).flatten(0, 1).double()
            products, count = products + patches.T @ patches, count + len(patches)
        variances, components = torch.linalg.eigh(products / count)
        scaled = components / (variances + WHITENING_FLOOR).sqrt()
        filters = scaled.T.flip(0).view(-1, images.shape[1], 2, 2)  # eigh sorts ascending: largest first
        self.conv0.weight.copy_(torch.cat([filters, -filters]))


@torch.no_grad()
def _near_a_copy(convolution: nn.Conv2d) -> nn.Conv2d:
    """Make the first filters pass on the input channels (identity kernels); leave the others as they are."""
    nn.init.dirac_(convolution.weight[: convolution.in_channels])
    return convolution
