"""Averaged predictions: of several networks, or of one network on several views of an image."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models.outputs import as_exclusive


def mean_answer(logits: Iterable[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the softmax probabilities of several logits, each (B, classes)."""
    logs = torch.stack([each.log_softmax(1) for each in logits])
    return logs.logsumexp(0) - math.log(len(logs))  # log of the mean of exp(logs), without underflow


class AveragedViews(nn.Module):
    """A network with test-time augmentation: its mean prediction over several views of each image.

    Two views are the image and its mirror image. Six views add both of these shifted by one pixel, once
    diagonally in each direction; the mean of the four shifted views then has the same weight as the mean of
    the two others (Jordan 2024, arXiv:2404.00498, section 3.5).

    Args:
        network: images (B, C, H, W) to logits (B, classes), or to one logit (B, 1) of two classes.
        views: 1, 2 or 6.
    """

    def __init__(self, network: nn.Module, views: int):
        super().__init__()
        self.network, self.views = network, views

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, (B, classes); of one view, its logits."""
        if self.views == 1:
            return as_exclusive(self.network(images))
        answer = self._mirrored(images)
        if self.views == 2:
            return answer
        height, width = images.shape[2:]
        wider = F.pad(images, [1] * 4, mode="reflect")
        moved = (wider[:, :, :height, :width], wider[:, :, 2:, 2:])
        return mean_answer([answer, mean_answer(map(self._mirrored, moved))])

    def _mirrored(self, images: Tensor) -> Tensor:
        return mean_answer(as_exclusive(self.network(view)).float() for view in (images, images.flip(3)))
