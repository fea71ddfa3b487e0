"""Metrics of segmentations: the confusion matrix of pixels, and what follows from it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.evaluation.tables import aligned, four_decimals


def confusion_of(predictions: Tensor, masks: Tensor, classes: int, ignore: int) -> Tensor:
    """Return the number of pixels of each true class (rows) and predicted class (columns), int64.

    Args:
        predictions: predicted labels, of any shape.
        masks: true labels, of the same shape.
        classes: number of classes.
        ignore: label of the pixels that do not count.
    """
    counted = masks != ignore
    pairs = masks[counted].long() * classes + predictions[counted].long()
    return pairs.bincount(minlength=classes**2).view(classes, classes)


@dataclass(frozen=True)
class Scores:
    """Metrics of one confusion matrix (classes, classes); rows are true classes.

    A class that is neither in the truth nor in the predictions has no IoU: it is NaN, and left out of means.
    """

    confusion: Tensor

    @property
    def pixels(self) -> int:
        """Number of pixels that count."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the pixels whose class is predicted."""
        return float(self.confusion.diag().sum()) / max(self.pixels, 1)

    @property
    def class_accuracies(self) -> Tensor:
        """Share of the pixels of each class that is predicted, (classes,) float64; NaN without pixels."""
        return self._shares(self.confusion.sum(1))

    @property
    def ious(self) -> Tensor:
        """Intersection over union of each class, (classes,) float64; NaN for an absent class."""
        hits = self.confusion.diag()
        return self._shares(self.confusion.sum(0) + self.confusion.sum(1) - hits)

    def _shares(self, of: Tensor) -> Tensor:
        hits = self.confusion.diag().double()
        return (hits / of.clamp(min=1)).where(of > 0, torch.nan)

    @property
    def absent(self) -> int:
        """Number of classes that are neither in the truth nor in the predictions."""
        return int(self.ious.isnan().sum())

    def as_dict(self) -> dict[str, float]:
        """Return the metrics by name."""
        return {
            "accuracy": self.accuracy,
            "class_accuracy": mean_of(self.class_accuracies),
            "miou": mean_of(self.ious),
            "absent": self.absent,
        }


def mean_of(values: Tensor) -> float:
    """Return the mean of the values that are numbers; 0 if none is."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0


def commonest_labels(masks: Iterable[Tensor], classes: int, ignore: int, size: tuple[int, int]) -> Tensor:
    """Return the commonest label at each place of some masks (h, w), as a mask of `size` (H, W).

    It is the answer of one who has not seen the image.
    """
    counts = torch.zeros(classes, *size, dtype=torch.int32)
    for mask in masks:
        labels = resized(mask, size).long()
        known = labels != ignore
        counts.scatter_add_(0, labels.where(known, 0)[None], known[None].int())
    return counts.argmax(0)


def resized(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask (h, w) of another size (H, W): each pixel has the label of the nearest one."""
    if mask.shape == tuple(size):
        return mask
    return F.interpolate(mask[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].to(mask.dtype)


def table(scores: Scores, names: Sequence[str]) -> list[str]:
    """Return share of the pixels, accuracy and IoU of each class, as aligned lines of text.

    What a class does not have is a dash.
    """
    share = scores.confusion.sum(1) / max(scores.pixels, 1)
    columns = (share.tolist(), scores.class_accuracies.tolist(), scores.ious.tolist())
    rows = [
        (name, *("-" if math.isnan(number) else four_decimals(number) for number in numbers))
        for name, *numbers in zip(names, *columns, strict=True)
    ]
    mean = ("mean", "", four_decimals(mean_of(scores.class_accuracies)), four_decimals(mean_of(scores.ious)))
    return aligned([("class", "share of pixels", "accuracy", "IoU"), *rows, mean])
