"""Answers of a classifier made of several: of some networks, or of one about several views of an input."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean_answer(logits: Iterable[Tensor]) -> Tensor:
    """Return the mean of the probabilities of some logits, each (B, classes), as logits."""
    logs = torch.stack([each.log_softmax(1) for each in logits])
    return logs.logsumexp(0) - math.log(len(logs))


class OfViews(nn.Module):
    """The mean of what a network says of several views of images (B, C, H, W), as logits.

    Two views are an image and its mirror image. With six, both are also seen moved by a pixel up and to the
    left, and down and to the right, and the four of those count as much as the two (Jordan 2024,
    arXiv:2404.00498, section 3.5).

    Args:
        network: images to logits (B, classes).
        views: 1, 2 or 6.
    """

    def __init__(self, network: nn.Module, views: int):
        super().__init__()
        self.network, self.views = network, views

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, (B, classes)."""
        if self.views == 1:
            return self.network(images)
        answer = self._mirrored(images)
        if self.views == 2:
            return answer
        height, width = images.shape[2:]
        wider = F.pad(images, [1] * 4, mode="reflect")
        moved = (wider[:, :, :height, :width], wider[:, :, 2:, 2:])
        return mean_answer([answer, mean_answer(map(self._mirrored, moved))])

    def _mirrored(self, images: Tensor) -> Tensor:
        return mean_answer(self.network(view).float() for view in (images, images.flip(3)))
