"""Objectives: functions of a network and a batch that return the loss, and what else is reported.

An objective returns a dictionary of sums over the examples of the batch (or its pixels, or tokens), with at
least

    loss     the sum of their losses, differentiable
    count    the number of examples

and whatever else is to be reported as a mean over the examples, such as `accuracy`, the number of correct
answers. It tells training from validation by `model.training`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sums = Mapping[str, Tensor | int]  # the loss is a Tensor, a count may be an int
Objective = Callable[[nn.Module, Any], Sums]


def classification(
    label_smoothing: float = 0.0,
    *,
    teacher: nn.Module | None = None,
    teacher_weight: float = 0.5,
    r_drop: float = 0.0,
) -> Objective:
    """Return the cross-entropy objective over batches of inputs (B, …) and labels (B,).

    In validation it also sums `accuracy`, the number of inputs whose largest logit is that of their label.
    The arguments affect only training, so that validation losses can be compared.

    Args:
        label_smoothing: share of a label that is spread over all classes (Szegedy et al. 2016).
        teacher: a network with the same inputs, whose answers are learnt besides the labels. It is frozen and
            put into eval mode (Hinton, Vinyals & Dean 2015, arXiv:1503.02531, at temperature 1).
        teacher_weight: w in [0, 1]; the loss is (1 − w) · CE(label, p) + w · CE(teacher's answer, p).
        r_drop: α, the weight of the KL term between two dropout passes (R-Drop, Wu et al. 2021,
            arXiv:2106.14448). If it is not 0, each batch passes the network twice, with different dropout
            masks, to p and q, and the loss is half of the paper's:
            (loss of p + loss of q) / 2 + α / 4 · (KL(p‖q) + KL(q‖p)).
    """
    if teacher:
        teacher.eval().requires_grad_(False)

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Sums:
        inputs, labels = batch
        logits = model(inputs).float()
        if not model.training:
            correct = (logits.argmax(1) == labels).sum()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            return {"loss": loss, "accuracy": correct, "count": len(labels)}
        loss_of = _loss(inputs, labels)
        loss = loss_of(logits)
        if r_drop:
            again = model(inputs).float()
            loss = (loss + loss_of(again)) / 2 + r_drop / 4 * _disagreement(logits, again)
        return {"loss": loss, "count": len(labels)}

    def _loss(inputs: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function from logits (B, classes) to the sum of their losses."""
        if not teacher:
            return lambda logits: _from_labels(logits, labels)
        with torch.no_grad():
            answers = teacher(inputs).float().softmax(1)
        return lambda logits: torch.lerp(
            _from_labels(logits, labels), F.cross_entropy(logits, answers, reduction="sum"), teacher_weight
        )

    def _from_labels(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")

    return objective


def with_neutral(objective: Objective, draw: Callable[[], Any], weight: float) -> Objective:
    """Return a classification objective that also teaches equal probabilities for neutral inputs.

    `draw()` returns inputs that belong to no class. In training, the loss grows for each example of the batch
    by `weight` times the mean cross-entropy between the uniform distribution and the answers to them.
    """

    def objective_and_neutral(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Sums:
        sums = objective(model, batch)
        if not model.training:
            return sums
        # The mean over classes is the cross-entropy with the uniform distribution, −Σ_c (1/C) log p_c.
        surprise = -model(draw()).float().log_softmax(1).mean()
        return {**sums, "loss": sums["loss"] + weight * sums["count"] * surprise}

    return objective_and_neutral


def _disagreement(logits: Tensor, others: Tensor) -> Tensor:
    """Return Σ KL(p‖q) + KL(q‖p) = Σ (p − q) · (log p − log q), for the logits (B, classes) of p and of q."""
    p, q = logits.log_softmax(1), others.log_softmax(1)
    return ((p.exp() - q.exp()) * (p - q)).sum()
