"""Convolutional networks for small photographs, such as those of CIFAR-10."""

from collections import OrderedDict

import torch
from torch import nn

from lib.errors import UserError


class SimpleCNN(nn.Sequential):
    """Four 3×3 convolutions, each with a ReLU and a max-pool behind it, and one linear layer.

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        size: side length of the images in pixels, 16 or more.
        bn: whether each convolution is followed by batch normalisation.
        dropout: share of the features dropped in training behind all pools but the first.
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
    """A designed network of seven convolutions, for the best accuracy per second of training.

    Why it looks as it does:

    - Time goes where maps are large. So the first layer looks at 2×2 pixels alone, the second is pooled at
      once (before its batch normalisation and ReLU, which then have a quarter of the work), and four of
      the seven convolutions run at 15×15 or 7×7 pixels, where a multiplication costs least: they are wide
      enough to keep the processor's matrix units busy.
    - Pooling by the maximum, all of the last map at once too, so that the linear layer is small and the
      network takes images of any size.
    - Batch normalisation before every ReLU, for a high learning rate; no bias beside it.

    After the networks of Page, "How to train your ResNet" (2019), and Jordan (2024, arXiv:2404.00498).

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        size: side length of the images in pixels, 16 or more.
        width: channels of the first of three groups; the others have four times as many.
    """

    stages = ("relu2", "relu4", "relu6", "pool")

    def __init__(self, classes: int = 10, channels: int = 3, size: int = 32, width: int = 48):
        if size < 16:
            raise UserError(f"fast-cnn takes images of 16 px or more, not of {size}")
        layers: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(channels, width // 2, 2, bias=False),
            "bn0": nn.BatchNorm2d(width // 2),
            "relu0": nn.ReLU(),
        }
        widths = (width // 2, width, 4 * width, 4 * width)
        for group in range(3):
            inputs, outputs = widths[group : group + 2]
            first, second = 2 * group + 1, 2 * group + 2
            layers[f"conv{first}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"pool{first}"] = nn.MaxPool2d(2)
            layers[f"bn{first}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{first}"] = nn.ReLU()
            layers[f"conv{second}"] = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
            layers[f"bn{second}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{second}"] = nn.ReLU()
        layers["pool"] = nn.AdaptiveMaxPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(4 * width, classes)
        super().__init__(OrderedDict(layers))
        # Convolutions of many channels run 1.6 times as fast so on a CPU, in bf16 and on CUDA too.
        self.to(memory_format=torch.channels_last)
