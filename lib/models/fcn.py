"""Fully convolutional networks on torchvision's encoders (Long et al. 2015, arXiv:1411.4038)."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models import pretrained
from lib.runtime.errors import UserError


@dataclass(frozen=True)
class Encoder:
    """Where the maps of an encoder are found.

    Attributes:
        layers: names of the parts of torchvision's network that make the encoder.
        taps: names of the layers whose outputs are the maps with strides 8, 16 and 32.
        channels: their channels.
        offset: the first cell of the map with stride f looks at pixel offset · (f − 1), along both axes.
    """

    layers: tuple[str, ...]
    taps: tuple[str, str, str]
    channels: tuple[int, int, int]
    offset: float


_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
ENCODERS = {
    "alexnet": Encoder(("features",), ("2", "5", "12"), (64, 192, 256), 1),
    "vgg16": Encoder(("features",), ("16", "23", "30"), (256, 512, 512), 0.5),
    "resnet18": Encoder(_RESNET, ("layer2", "layer3", "layer4"), (128, 256, 512), 0),
    # Its last map has a stride of 16; a pooling is added for that of 32.
    "squeezenet1_1": Encoder(("features",), ("7", "12", "pool"), (256, 512, 512), 1),
    "mobilenet_v2": Encoder(("features",), ("6", "13", "18"), (32, 96, 1280), 0),
}
STRIDES = (8, 16, 32)


def bilinear_kernel(factor: int) -> Tensor:
    """Return the kernel (2f, 2f) with which a transposed convolution of stride f interpolates bilinearly.

    Along one axis it is 1 − |i − (2f − 1) / 2| / f for i = 0 … 2f − 1.
    """
    line = 1 - (torch.arange(2 * factor) - (2 * factor - 1) / 2).abs() / factor
    return line[:, None] * line


class UpSampling(nn.ConvTranspose2d):
    """Learnable up-sampling of each channel by itself: it begins as bilinear interpolation.

    (B, C, h, w) to (B, C, f h, f w). At first it equals `F.interpolate(x, scale_factor=f, mode="bilinear",
    align_corners=False)`, also at the edges, whose cells are repeated outwards.

    Args:
        channels: C.
        factor: f, an even number.
    """

    def __init__(self, channels: int, factor: int) -> None:
        # One cell is added on each side, which puts f more pixels there; the padding takes them away.
        padding = factor + factor // 2
        super().__init__(channels, channels, 2 * factor, factor, padding=padding, groups=channels, bias=False)
        with torch.no_grad():
            self.weight.copy_(bilinear_kernel(factor).expand_as(self.weight))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="replicate"), output_size)


class FCN(nn.Module):
    """A fully convolutional network: class scores of one to three maps of an encoder, enlarged and added.

    FCN-32s enlarges the scores of the map with stride 32 at once. FCN-16s doubles them, adds those of the map
    with stride 16, and enlarges the sum; FCN-8s takes one more such step.

    (B, 3, H, W) of any size that the encoder takes to logits (B, classes, H, W).

    Args:
        classes: number of classes.
        channels: channels of the images, 3.
        finest: 32, 16 or 8, the stride of the finest map.
        encoder: name of one of torchvision's networks, see `ENCODERS`.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        finest: int = 8,
        encoder: str = "alexnet",
    ) -> None:
        super().__init__()
        if channels != 3:
            raise UserError(f"the encoder {encoder} takes images of 3 channels, not of {channels}")
        self.finest, self.entry = finest, ENCODERS[encoder]
        self.encoder = nn.Sequential(_layers(encoder, self.entry))
        used = [(tap, width) for *_, tap, width in self._maps()]
        self.scores = nn.ModuleDict({tap: nn.Conv2d(width, classes, 1) for tap, width in used})
        self.doublings = nn.ModuleList([UpSampling(classes, 2) for _ in used[1:]])
        self.enlarge = UpSampling(classes, finest)
        self.stages = tuple(f"encoder.{tap}" for tap, _ in used)
        self.to(memory_format=torch.channels_last)

    def _maps(self) -> list[tuple[int, str, int]]:
        """Return stride, tap and channels of each map in use, the finest first."""
        every = zip(STRIDES, self.entry.taps, self.entry.channels, strict=True)
        return [each for each in every if each[0] >= self.finest]

    def forward(self, images: Tensor) -> Tensor:
        maps: dict[str, Tensor] = {}
        x = images
        for name, layer in self.encoder.named_children():
            x = layer(x)
            if name in self.scores:
                maps[name] = self.scores[name](x)
        *finer, score = (maps[tap] for _, tap, _ in self._maps())
        for doubling, own in zip(self.doublings, reversed(finer), strict=True):
            score = own + placed(doubling(score), 0, own.shape[2:])
        # An enlarged map is taken for one whose first cell looks at the middle of the first f pixels.
        start = round((self.entry.offset - 0.5) * (self.finest - 1))
        return placed(self.enlarge(score), start, images.shape[2:])

    def load_encoder(self, weights: dict[str, Tensor]) -> list[str]:
        """Load the weights of torchvision's network into the encoder; return the names of those it lacks."""
        own = self.encoder.state_dict()
        prefix = "features." if self.entry.layers == ("features",) else ""
        found = {name.removeprefix(prefix): value for name, value in weights.items()}
        missing = [name for name in own if name not in found or found[name].shape != own[name].shape]
        if not missing:
            self.encoder.load_state_dict({name: found[name] for name in own})
        return missing


def _layers(name: str, entry: Encoder) -> "OrderedDict[str, nn.Module]":
    network = pretrained.build(name)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for part in entry.layers:
        module = network.get_submodule(part)
        layers.update(module.named_children() if part == "features" else [(part, module)])
    if "pool" in entry.taps:
        layers["pool"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    return layers


def placed(maps: Tensor, start: int, size: torch.Size) -> Tensor:
    """Return maps (…, h, w) cut and extended to `size` (H, W), their first pixel at row and column `start`.

    What lies outside has the value of the nearest pixel.
    """
    height, width = size
    top, left = max(0, -start), max(0, -start)
    before = max(0, start)
    maps = maps[..., top : top + height - before, left : left + width - before]
    below, right = (
        max(0, wanted - before - there) for wanted, there in zip(size, maps.shape[2:], strict=True)
    )
    if not (before or below or right):
        return maps
    return F.pad(maps, (before, right, before, below), mode="replicate")
