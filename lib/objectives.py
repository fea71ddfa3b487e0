"""What networks are trained to do: objectives for `lib.train.fit`, one for each kind of task."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.train import Objective


def classification(label_smoothing: float = 0.0) -> Objective:
    """Return the cross-entropy objective over batches of inputs (B, …) and labels (B,).

    Besides `loss` and `count` it sums `accuracy`, the inputs whose largest logit is their label's.
    Labels are smoothed in training only, so that validation losses compare (Szegedy et al. 2016).
    """

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, labels = batch
        logits = model(inputs).float()
        if model.training:
            loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
            return {"loss": loss, "count": len(labels)}
        correct = (logits.argmax(1) == labels).sum()
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum"),
            "accuracy": correct,
            "count": len(labels),
        }

    return objective


def distillation(teacher: nn.Module, weight: float, label_smoothing: float = 0.0) -> Objective:
    """Return the objective of `classification` whose training loss also draws to a teacher's answers.

        (1 − weight) · CE(label, p) + weight · CE(q, p)

    where q are the probabilities that the teacher, which drops nothing, gives for the same inputs (Hinton,
    Vinyals & Dean 2015, arXiv:1503.02531, at temperature 1).

    Args:
        teacher: a network that takes the same inputs; it is put in eval mode and frozen.
        weight: of the teacher, in [0, 1].
        label_smoothing: of the labels alone.
    """
    plain = classification(label_smoothing)
    teacher.eval().requires_grad_(False)

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        if not model.training:
            return plain(model, batch)
        inputs, labels = batch
        with torch.no_grad():
            answers = teacher(inputs).float().softmax(1)
        logits = model(inputs).float()
        from_labels = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
        from_teacher = F.cross_entropy(logits, answers, reduction="sum")
        return {"loss": (1 - weight) * from_labels + weight * from_teacher, "count": len(labels)}

    return objective
