"""Small convolutional networks for small images."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib.runtime.errors import UserError


class ShiftedConv2d(nn.Conv2d):
    """A one-channel 2×2 convolution, computed on the CPU as four shifted multiply-adds.

    The library spends nearly all of its time on such a layer in overhead. Parameters and results are
    `Conv2d`'s (to rounding); on other devices the computation is too.
    """

    def __init__(self):
        super().__init__(1, 1, kernel_size=2)
        # Behind this layer is a ReLU of one channel: if its weights start out mostly negative, it is
        # zero everywhere, and dead for good (two seeds in four, with the library's initial values).
        # So it starts as little more than a copy of its input, one of the four taps at 0.5 to 1.
        with torch.no_grad():
            self.weight.mul_(0.5).view(-1)[torch.randint(4, ())] += 0.75
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, 1, H − 1, W − 1)."""
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype and x.dim() == 4 and x.shape[1] == 1
        # Compiled, the library's convolution is as fast, and this one would be compiled anew at every step.
        if plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
            return _ShiftedConvolution.apply(x, self.weight, self.bias)
        return super().forward(x)


def _shifted_views(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four views of x (B, 1, H, W) that a 2×2 kernel's weights meet, each (B, 1, H − 1, W − 1)."""
    height, width = x.shape[2] - 1, x.shape[3] - 1
    above, below = x.narrow(2, 0, height), x.narrow(2, 1, height)
    return (
        above.narrow(3, 0, width),
        above.narrow(3, 1, width),
        below.narrow(3, 0, width),
        below.narrow(3, 1, width),
    )


class _ShiftedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        views, ctx.factors = _shifted_views(x), weight.flatten().tolist()
        ctx.save_for_backward(x, *views)
        out = torch.add(bias.view(1, 1, 1, 1), views[0], alpha=ctx.factors[0])
        for view, factor in zip(views[1:], ctx.factors[1:], strict=True):
            out.add_(view, alpha=factor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, *views = ctx.saved_tensors
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.zeros_like(x)
            for view, factor in zip(_shifted_views(x_gradient), ctx.factors, strict=True):
                view.add_(gradient, alpha=factor)
        weight_gradient = torch.stack([(gradient * view).sum() for view in views])
        return x_gradient, weight_gradient.view(1, 1, 2, 2), gradient.sum().view(1)


class MnistClassifier(nn.Module):
    """Four one-channel 2×2 convolutions and two fully connected layers: 9,958 parameters at 28 px.

    Its module names are those of state_dict files in the world; they may not change.

    Args:
        classes: number of classes.
        channels: of the images; must be 1.
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
    """LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998), layer by layer under the paper's names.

    Where it differs: ReLU for the scaled tanh; max-pooling for averaging with a trained factor and
    sigmoid; every map of C3 sees all maps of S2, not some; a linear output trained with cross-entropy
    for Euclidean radial basis functions. Images of 28 px are framed to 32 by C1's padding.

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: of the images, 1 or 3.
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
    """A designed network of 24 layers: six 3×3 convolutions, two fully connected layers, 191,626 parameters.

    Why it looks as it does:

    - Four of its convolutions are unpadded. The frame of these images is empty, so nothing is lost by
      shrinking, no edge is invented, and half the arithmetic of padded ones is saved where maps are
      large and costly.
    - Two max-pools, each after two convolutions, and none before the head: its 4×4 map still tells
      where a stroke is, which parts 4 from 9 and 7 from 1; averaging it away costs accuracy.
    - Widths grow slowly, 32, 48, 64, for the first layers have few strokes to tell apart but by far the
      most pixels; the last two convolutions, padded, are cheap and add depth at 4×4.
    - Batch normalisation before every ReLU, the first fully connected layer's too, lets it learn at a
      high rate in few epochs; convolutions and that layer need no bias then.

    (B, C, H, W) to logits (B, classes).

    Args:
        classes: number of classes.
        channels: of the images.
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
        # Convolutions of many channels run 1.6 times as fast so on a CPU, in bf16 and on CUDA too.
        self.to(memory_format=torch.channels_last)
