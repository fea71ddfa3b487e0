"""Small convolutional networks for small images."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lib.models.shifted_convolution import ShiftedConv2d
from lib.runtime.errors import UserError


class MnistClassifier(nn.Module):
    """Four one-channel 2×2 convolutions and two fully connected layers: 9,958 parameters at 28 px.

    The module names must not change, because published state_dict files contain them.

    Args:
        classes: number of classes.
        channels: channels of the images; must be 1.
        size: side length of the images in pixels.
    """

    stages = (
        *(f"layers.sub-layer{i}" for i in range(4)),
        "max_pool",
        "fc1",
        "fc2",
    )

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28):
        super().__init__()
        if channels != 1:
            raise UserError(f"mnist-classifier takes images of 1 channel, not of {channels}")
        self.layers = nn.ModuleDict({f"sub-layer{i}": self._sub_layer() for i in range(4)})
        self.max_pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(((size - 4) // 2) ** 2, 64)
        self.tanh = nn.Tanh()
        self.fc2 = nn.Linear(64, classes)

    @staticmethod
    def _sub_layer() -> nn.Sequential:
        layer = nn.Sequential()
        layer.add_module("conv", ShiftedConv2d())
        layer.add_module("relu", nn.ReLU())
        layer.add_module("bn", nn.BatchNorm2d(1))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to logits (B, classes)."""
        for layer in self.layers.values():
            x = layer(x)
        x = self.max_pool(x).flatten(1)
        return self.fc2(self.tanh(self.fc1(x)))


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998), with the paper's names of layers.

    Differences from the paper: ReLU instead of the scaled tanh; max-pooling instead of averaging with a
    trained factor and a sigmoid; each map of C3 sees all maps of S2, not a subset; a linear output trained
    with cross-entropy instead of Euclidean radial basis functions. C1 pads images of 28 px to 32.

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: channels of the images, 1 or 3.
        size: side length of the images in pixels, 28 or 32.
    """

    stages = ("s2", "s4", "c5", "f6", "output")

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28):
        if size not in (28, 32):
            raise UserError(f"lenet5 takes images of 28 or 32 px, not of {size}")
        layers = {
            "c1": nn.Conv2d(channels, 6, kernel_size=5, padding=(32 - size) // 2),
            "relu1": nn.ReLU(),
            "s2": nn.MaxPool2d(2),
            "c3": nn.Conv2d(6, 16, kernel_size=5),
            "relu3": nn.ReLU(),
            "s4": nn.MaxPool2d(2),
            "c5": nn.Conv2d(16, 120, kernel_size=5),
            "relu5": nn.ReLU(),
            "flatten": nn.Flatten(),
            "f6": nn.Linear(120, 84),
            "relu6": nn.ReLU(),
            "output": nn.Linear(84, classes),
        }
        super().__init__(OrderedDict(layers))


class DeepCNN(nn.Sequential):
    """A network of 24 layers: six 3×3 convolutions and two fully connected layers, 191,626 parameters.

    Reasons for its design:

    - The first four convolutions are unpadded. The borders of these images are empty, so shrinking loses
      nothing, no artificial edge appears, and half of the arithmetic of padded convolutions is saved where
      the maps are large.
    - Two max-pools, each after two convolutions, and none before the head: the 4×4 map still tells where a
      stroke is, which separates 4 from 9 and 7 from 1; averaging the map away costs accuracy.
    - Widths grow slowly (32, 48, 64), because the first layers have few kinds of strokes to distinguish but
      by far the most pixels. The last two convolutions, which are padded, are cheap and add depth at 4×4.
    - Batch normalisation precedes every ReLU, including that of the first fully connected layer, and allows
      a high learning rate and few epochs. The layers before it then need no bias.

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: channels of the images.
        size: side length of the images in pixels, 20 or more.
    """

    stages = ("pool1", "pool2", "relu6", "relu7", "output")

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28):
        if size < 20:
            raise UserError(f"deep-cnn takes images of 20 px or more, not of {size}")
        layers: dict[str, nn.Module] = {}

        def convolution(number: int, inputs: int, outputs: int, padding: int = 0) -> None:
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU()

        convolution(1, channels, 32)
        convolution(2, 32, 32)
        layers["pool1"] = nn.MaxPool2d(2)
        convolution(3, 32, 48)
        convolution(4, 48, 64)
        layers["pool2"] = nn.MaxPool2d(2)
        convolution(5, 64, 64, padding=1)
        convolution(6, 64, 64, padding=1)
        side = ((size - 4) // 2 - 4) // 2
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(64 * side**2, 64, bias=False)
        layers["bn7"] = nn.BatchNorm1d(64)
        layers["relu7"] = nn.ReLU()
        layers["output"] = nn.Linear(64, classes)
        super().__init__(OrderedDict(layers))
        # With channels last, convolutions of many channels run 1.6 times as fast on a CPU; in bf16 and on
        # CUDA too.
        self.to(memory_format=torch.channels_last)
