"""A segmentation network that trains fast on a CPU: a residual trunk and a light decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.runtime.errors import UserError

LEAST = 16  # pixels; the trunk's last map of anything smaller would be one cell


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, h, w) enlarged bilinearly to `size` (H, W)."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def _convolution(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Return a convolution that keeps the size, batch normalisation, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385), the second one dilated.

    (B, inputs, H, W) to (B, outputs, ⌈H/stride⌉, ⌈W/stride⌉).

    Args:
        inputs, outputs: channels.
        stride: 1 or 2.
        dilation: of the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                # The mean of the pixels and not one of four, which would lose thin things.
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallSegmenter(nn.Module):
    """A segmentation network for a CPU, good from random weights (of the kind of ENet and ERFNet).

    Reasons for its design:

    - Two cores do a multiplication of a dense 3×3 convolution ten times as fast as one of a depthwise
      convolution, and twice as fast as one of a factorised (3×1, 1×3) pair, so there are dense ones alone.
    - Most of the time goes where maps are large: batch normalisation and ReLU of 16 channels at half of the
      size take as long as a convolution of 128 channels at an eighth. So the first layer sees pixels as 12
      channels at half of the size (space to depth), and maps get wider as they get smaller.
    - The decoder adds maps of a sixteenth, an eighth, a quarter and half of the size (Lin et al. 2017,
      arXiv:1612.03144), because poles and signs are two to four pixels wide.

    (B, 3, H, W) of any size from 16 px on to logits (B, classes, H, W).

    Args:
        classes: number of classes.
        channels: channels of the images.
        width: channels of the first layer; the stages have 4, 8 and 16 times as many.
        dropout: share of the channels before the logits that training drops.
    """

    stages = ("stage4", "stage8", "stage16", "decode4", "decode2")

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        width: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        coarse, fine = 3 * width, 3 * width // 2
        self.stem = _convolution(4 * channels, width)
        self.stage4 = Residual(width, 4 * width, 2)
        self.stage8 = Residual(4 * width, 8 * width, 2)
        self.stage16 = nn.Sequential(Residual(8 * width, 16 * width, 2), Residual(16 * width, 16 * width))
        self.lateral16 = _convolution(16 * width, coarse, 1)
        self.lateral8 = _convolution(8 * width, coarse, 1)
        self.lateral4 = _convolution(4 * width, fine, 1)
        self.lateral2 = _convolution(width, fine, 1)
        self.decode8 = nn.Sequential(_convolution(coarse, coarse), _convolution(coarse, fine, 1))
        self.decode4 = _convolution(fine, fine)
        self.decode2 = _convolution(fine, fine)
        self.dropout = nn.Dropout2d(dropout)
        self.output = nn.Conv2d(fine, classes, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if min(height, width) < LEAST:
            raise UserError(f"small takes images of {LEAST} px or more, not of {width}×{height}")
        # An odd side is made even by its last row or column once more.
        even = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
        half = self.stem(F.pixel_unshuffle(even, 2))
        quarter = self.stage4(half)
        eighth = self.stage8(quarter)
        sixteenth = self.stage16(eighth)
        y = self.decode8(self.lateral8(eighth) + enlarged(self.lateral16(sixteenth), eighth.shape[2:]))
        y = self.decode4(self.lateral4(quarter) + enlarged(y, quarter.shape[2:]))
        y = self.decode2(self.lateral2(half) + enlarged(y, half.shape[2:]))
        logits = enlarged(self.output(self.dropout(y)), even.shape[2:])
        return logits[..., :height, :width]
