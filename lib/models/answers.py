"""Answers of a classifier made of several: of some networks, or of one about several views of an input."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def mean_answer(logits: Iterable[Tensor]) -> Tensor:
    """Return the mean of the probabilities of some logits, each (B, classes), as logits."""
    logs = torch.stack([each.log_softmax(1) for each in logits])
    return logs.logsumexp(0) - math.log(len(logs))


class Mirrored(nn.Module):
    """The mean of what a network says of images (B, C, H, W) and of their mirror images, as logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, (B, classes)."""
        return mean_answer(self.network(view).float() for view in (images, images.flip(3)))
