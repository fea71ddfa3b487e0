"""A small network to explain, and images for it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.preprocessing import Preprocessing
from lib.explain.explanation import Request
from lib.explain.targets import Target, class_target
from lib.models.network import Network


class Small(nn.Module):
    """Convolution, ReLU, pooling, convolution, ReLU, global average pooling, linear layer."""

    def __init__(self, rectify=F.relu):
        super().__init__()
        self.first, self.pool = nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2)
        self.second, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.dropout, self.head = nn.Dropout(), nn.Linear(6, 5)
        self.rectify = rectify

    def forward(self, x):
        x = self.pool(self.rectify(self.first(x)))
        x = self.rectify(self.norm(self.second(x)))
        return self.head(self.dropout(x.mean((2, 3))))


def small(rectify=F.relu, dtype=torch.float64) -> Small:
    torch.manual_seed(0)
    return Small(rectify).to(dtype)


def small_images() -> torch.Tensor:
    """Three images for it, (3, 2, 8, 12), float64."""
    return torch.randn(3, 2, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network_of(module: nn.Module, channels: int = 2, size: int = 8) -> Network:
    """A network that takes its images as they are, without class names."""
    preprocessing = Preprocessing(size, channels, (0.0,) * channels, (1.0,) * channels)
    return Network(module, (), preprocessing, type(module).__name__)


def request(module: nn.Module, images: Tensor, targets: list, layers=(), **more) -> Request:
    """A request; targets are numbers of classes, or functions of the output."""
    made = [
        Target(f"target {index}", each) if isinstance(each, Callable) else class_target(each)
        for index, each in enumerate(targets)
    ]
    return Request(network_of(module, images.shape[1], images.shape[2]), images, made, layers, **more)
