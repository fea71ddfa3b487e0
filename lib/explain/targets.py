"""Targets, the quantities that are explained: scalars of a network's output for each input, with names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.runtime.errors import UserError

# Function from (B, classes) to (T, B): one number for each of T targets and each image.
Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """A scalar of a network's output for each input.

    Attributes:
        name: name in titles and records, e.g. that of a class.
        score: function from the output (B, …) to one number for each input (B,), differentiable.
    """

    name: str
    score: Callable[[Tensor], Tensor]

    def __neg__(self) -> Target:
        """Return the negative scalar, whose explanation shows what speaks against the target."""
        return Target(self.name, lambda output: -self.score(output))


def class_target(index: int, kind: str = "logit", name: str = "") -> Target:
    """Return the score of one class as a target; its name is the class's number by default.

    Args:
        index: number of the class.
        kind: kind of its score, as for `class_scores`.
        name: name of the class.
    """
    scores = class_scores([index], kind)
    return Target(name or str(index), lambda output: scores(output)[0])


def scores_of(targets: Sequence[Target]) -> Scores:
    """Return the function that computes the scores of T targets (T, B) from one output."""
    return lambda output: torch.stack([target.score(output) for target in targets])


def class_scores(targets: Tensor | Sequence[int], kind: str = "logit") -> Scores:
    """Return the scores of given classes.

    Args:
        targets: T classes (T,), the same for all images, or (T, B), T for each image.
        kind: `logit`, z_c; `log-odds`, z_c − log Σ_{j≠c} exp z_j = log(p_c / (1 − p_c)); or `probability`,
            p_c, whose gradient vanishes if the network is certain.

    Raises:
        UserError: no such kind; later, when the scores are computed, a class that the network does not have.
    """
    score = _kind(kind)
    chosen = torch.as_tensor(targets, dtype=torch.long)
    chosen = chosen.view(-1, 1) if chosen.dim() < 2 else chosen

    def scores(output: Tensor) -> Tensor:
        classes = chosen.to(output.device)
        if (classes < 0).any() or (classes >= output.shape[1]).any():
            wrong = classes[(classes < 0) | (classes >= output.shape[1])][0]
            raise UserError(f"there is no class {wrong}: the network tells {output.shape[1]} apart, from 0")
        return score(output, classes.expand(-1, len(output)))

    return scores


def top_scores(k: int, kind: str = "logit") -> Scores:
    """Return the scores of the k most probable classes of each image, found from the same output.

    Raises:
        UserError: no such kind; later, when the scores are computed, fewer than k classes.
    """
    score = _kind(kind)
    return lambda output: score(output, top_classes(output, k))


def top_classes(output: Tensor, k: int) -> Tensor:
    """Return the k most probable classes of each image (k, B), in falling order, from output (B, classes).

    Raises:
        UserError: there are fewer than k classes, or k is not positive.
    """
    if not 1 <= k <= output.shape[1]:
        raise UserError(f"cannot take the {k} likeliest classes of {output.shape[1]}")
    return output.detach().topk(k, dim=1).indices.T


def _kind(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name not in _KINDS:
        raise UserError(f"there is no score {name!r}; choose from {', '.join(_KINDS)}")
    return _KINDS[name]


def _logit(output: Tensor, classes: Tensor) -> Tensor:
    return output.T.gather(0, classes)


def _log_odds(output: Tensor, classes: Tensor) -> Tensor:
    if output.shape[1] < 2:
        raise UserError("log-odds need two classes or more; this network has one")
    each = output.expand(len(classes), -1, -1)
    others = each.scatter(2, classes[:, :, None], -torch.inf)
    return _logit(output, classes) - others.logsumexp(2)


def _probability(output: Tensor, classes: Tensor) -> Tensor:
    return _logit(output.softmax(1), classes)


_KINDS = {"logit": _logit, "log-odds": _log_odds, "probability": _probability}
