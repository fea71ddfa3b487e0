"""A classifier's answers to labelled examples: probabilities, loss, metrics of each class, and mistakes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.evaluation.tables import aligned, four_decimals
from lib.models import layers, outputs
from lib.runtime.errors import UserError

# Of the standard normal distribution, 95 % lies within this many standard deviations of the mean.
NORMAL_QUANTILE = 1.959964
MOST_CLASSES_LISTED = 40
WORST_CLASSES_LISTED = 20


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for N examples of C classes.

    Attributes:
        probabilities: (N, C) float32, on the CPU.
        labels: true classes (N,), on the CPU.
        loss: mean cross-entropy in nats.
    """

    probabilities: Tensor
    labels: Tensor
    loss: float

    @property
    def classes(self) -> Tensor:
        """The most probable class of each example (N,)."""
        return self.probabilities.argmax(dim=1)


def predict(model: nn.Module, batches: Iterable[tuple]) -> Predictions:
    """Run `model` in eval mode over `batches` of (inputs, labels (B,)) on its device.

    The model returns logits (B, C). Afterwards every module has its own mode again.

    Raises:
        UserError: there are no examples, or an answer is not finite.
    """
    logits, labels = [], []
    with layers.evaluating(model), torch.no_grad():
        for inputs, batch_labels in batches:
            logits.append(model(inputs).float())
            labels.append(batch_labels)
    if not labels:
        raise UserError("there are no examples to evaluate")
    # One copy to the CPU at the end, because a copy per batch would wait for the device each time.
    all_logits, all_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
    outputs.check_finite(all_logits, "the network")
    # In float64: the rounding errors of a sum of float32 grow with the number of examples.
    loss = F.cross_entropy(all_logits.double(), all_labels).item()
    return Predictions(all_logits.softmax(dim=1), all_labels, loss)


def confusion(predictions: Predictions) -> np.ndarray:
    """Return the confusion matrix (C, C) of counts: a row per true class, a column per predicted one."""
    from sklearn.metrics import confusion_matrix

    every_class = range(predictions.probabilities.shape[1])
    return confusion_matrix(predictions.labels, predictions.classes, labels=every_class)


def per_class(predictions: Predictions, class_names: Sequence[str]) -> list[str]:
    """Return precision, recall, F1 and number of examples of each class, as aligned lines of text.

    Of more than `MOST_CLASSES_LISTED` classes, only those with the lowest F1 are listed.

    Classes without examples show dashes, and the macro average in the last line leaves them out. A class that
    is never predicted has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    *scores, support = precision_recall_fscore_support(
        predictions.labels, predictions.classes, labels=range(len(class_names)), zero_division=0
    )
    scores = np.stack(scores, axis=1)
    present = support > 0
    listed = list(range(len(class_names)))
    if len(listed) > MOST_CLASSES_LISTED:
        worst = sorted((number for number in listed if present[number]), key=lambda number: scores[number, 2])
        listed = worst[:WORST_CLASSES_LISTED]
    rows = [
        (name, *(four_decimals(score) if known else "-" for score in row), str(count))
        for name, row, count, known in zip(class_names, scores, support, present, strict=True)
    ]
    rows = [rows[number] for number in listed]
    if len(listed) < len(class_names):
        rows.append((f"… and {len(class_names) - len(listed)} more", "", "", "", ""))
    macro = ("macro average", *map(four_decimals, scores[present].mean(axis=0)), str(support.sum()))
    return aligned([("class", "precision", "recall", "F1", "examples"), *rows, macro])


def most_confident_mistakes(predictions: Predictions, count: int) -> Tensor:
    """Return the indices of at most `count` wrong predictions, in order of falling confidence."""
    confidence = predictions.probabilities.amax(dim=1)
    wrong = (predictions.classes != predictions.labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval for a share of `count` examples (Wilson 1927).

    Its ends are the two p with |share − p| = z √(p (1 − p) / count), the roots of a quadratic equation. The
    usual share ± z √(share (1 − share) / count) has no width at a share of 0 or 1, and passes beyond them.
    """
    z = NORMAL_QUANTILE
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - reach, centre + reach
