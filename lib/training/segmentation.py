"""The objective of networks that give each pixel a class: weighted cross-entropy and a loss of the IoU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.training.objectives import Objective, Sums
from lib.training.validation import Metrics

# Function from predictions and masks, both (B, H, W), to a tensor of counts that batches and ranks add up.
Count = Callable[[Tensor, Tensor], Tensor]


def segmentation(
    ignore: int, count: Count, weights: Tensor | None = None, *, iou_weight: float = 0.0, views: int = 1
) -> Objective:
    """Return the objective over batches of images (B, 3, H, W) and masks (B, H, W).

    Training reports the mean over images of their mean loss per pixel. Validation sums the plain
    cross-entropy over pixels, so that the losses of runs with different weights can be compared, and the
    counts, under `confusion`.

    Args:
        ignore: label of the pixels that do not count.
        count: what validation counts, e.g. the confusion matrix.
        weights: of the classes in training (classes,).
        iou_weight: weight of the loss 1 − mean IoU, with probabilities in place of predictions (Rahman &
            Wang 2016, "Optimizing intersection-over-union in deep neural networks").
        views: 2 validates the mean of the answers to an image and to its mirror image.
    """

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Sums:
        images, masks = batch
        if not model.training:
            logits = answer(model, images, views)
            loss = F.cross_entropy(logits, masks, ignore_index=ignore, reduction="sum")
            return {
                "loss": loss.double(),
                "count": (masks != ignore).sum(),
                "confusion": count(logits.argmax(1), masks),
            }
        logits = model(images).float()
        own = None if weights is None else weights.to(logits.device)
        loss = F.cross_entropy(logits, masks, own, ignore_index=ignore, reduction="sum")
        # Without pixels that count there is no loss; 1 keeps it from being NaN.
        loss = len(images) * loss / (masks != ignore).sum().clamp(min=1)
        if iou_weight:
            loss = loss + iou_weight * len(images) * soft_iou_loss(logits, masks, ignore)
        return {"loss": loss, "count": len(images)}

    return objective


def answer(model: nn.Module, images: Tensor, views: int = 1) -> Tensor:
    """Return logits (B, classes, H, W), or the log of mean probabilities with 2 `views`."""
    logits = model(images).float()
    if views == 1:
        return logits
    mirrored = model(images.flip(3)).float().flip(3)
    return ((logits.softmax(1) + mirrored.softmax(1)) / 2).clamp(min=1e-12).log()


def soft_iou_loss(logits: Tensor, masks: Tensor, ignore: int) -> Tensor:
    """Return 1 − the mean over the classes of a batch of Σ p t / Σ (p + t − p t), (): t is 1 at the class.

    Args:
        logits: (B, classes, H, W).
        masks: (B, H, W).
        ignore: label of the pixels that do not count.
    """
    known = (masks != ignore)[:, None]
    probabilities = logits.softmax(1) * known
    labels = masks.where(known[:, 0], 0)
    of_class = probabilities.gather(1, labels[:, None])[:, 0] * known[:, 0]
    classes = logits.shape[1]
    hits = torch.zeros(classes, device=logits.device).scatter_add_(0, labels.flatten(), of_class.flatten())
    true = torch.zeros_like(hits).scatter_add_(0, labels.flatten(), known[:, 0].flatten().float())
    union = probabilities.sum((0, 2, 3)) + true - hits
    present = true > 0
    return 1 - (((hits + 1) / (union + 1)) * present).sum() / present.sum().clamp(min=1)


def by_miou(metrics: Metrics) -> tuple[float, ...]:
    """Score for `fit`: the higher mean IoU is better; of equal ones, the lower loss."""
    return metrics["miou"], -metrics["loss"]
