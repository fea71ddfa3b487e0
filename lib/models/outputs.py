"""How the outputs of a classifier are read: as one class of several, as two sides, or as independent classes.

Several logits are those of classes of which an image has one (softmax), or, in a network with `independent`
outputs, of classes that it has or has not, each by itself (sigmoid). One logit z is that of two classes: the
second, with probability 1 / (1 + e⁻ᶻ), and the first, whose logit is −z.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.runtime.errors import UserError


def count_classes(output: Tensor) -> int:
    """Return the number of classes that logits (B, outputs) tell apart: 2 if there is one output."""
    return max(output.shape[1], 2)


def probabilities(output: Tensor, independent: bool = False) -> Tensor:
    """Return the probability of each class (B, classes) from logits (B, outputs)."""
    if output.shape[1] == 1:
        return both_sides(output).sigmoid()
    return output.sigmoid() if independent else output.softmax(1)


def both_sides(output: Tensor) -> Tensor:
    """Return the logits of two classes (B, 2) = (−z, z) from one logit z (B, 1)."""
    return torch.cat([-output, output], 1)


def as_exclusive(output: Tensor) -> Tensor:
    """Return logits (B, classes) with softmax probabilities: (0, z) of one logit z, or else `output`."""
    return F.pad(output, (1, 0)) if output.shape[1] == 1 else output


def check_finite(output: Tensor, source: str) -> None:
    """Raise a UserError if an output has numbers that are not finite; `source` is whose output it is."""
    if not bool(output.isfinite().all()):
        raise UserError(
            f"{source} answers with numbers that are not finite: are its weights, --mean and --std those "
            "with which it was trained?"
        )
