"""Targets, the quantities that are explained: scalars of a network's output for each input, with names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.models import outputs
from lib.runtime.errors import UserError

# Function from (B, classes) to (T, B): one number for each of T targets and each image.
Scores = Callable[[Tensor], Tensor]
# One class for all images, T classes for all images, or (T, B) classes, T for each image, by their numbers.
Classes = int | Sequence[int] | Tensor


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


def class_target(index: int, kind: str = "logit", name: str = "", *, independent: bool = False) -> Target:
    """Return the score of one class as a target; its name is the class's number by default.

    Args:
        index: number of the class.
        kind, independent: of its score, as for `class_scores`.
        name: name of the class.
    """
    scores = class_scores([index], kind, independent=independent)
    return Target(name or str(index), lambda output: scores(output)[0])


def unit_target(index: int) -> Target:
    """Return one number of an output of vectors (B, L), e.g. the mean of a latent unit, as a target.

    Raises:
        UserError: later, when it is computed: there is no such unit.
    """

    def score(output: Tensor) -> Tensor:
        if index >= output.shape[1]:
            raise UserError(f"there is no unit {index}: the network has {output.shape[1]}, from 0")
        return output[:, index]

    return Target(f"unit {index}", score)


def scores_of(targets: Sequence[Target]) -> Scores:
    """Return the function that computes the scores of T targets (T, B) from one output."""
    return lambda output: torch.stack([target.score(output) for target in targets])


def scores_for(asked: Classes | Scores) -> Scores:
    """Return scores as they are, and for numbers of classes their logits."""
    if isinstance(asked, int):
        return class_scores([asked])
    return class_scores(asked) if isinstance(asked, Tensor | Sequence) else asked


def class_scores(
    targets: Tensor | Sequence[int], kind: str = "logit", *, independent: bool = False
) -> Scores:
    """Return the scores of given classes. One logit z is that of class 1, and −z that of class 0.

    Args:
        targets: T classes (T,), the same for all images, or (T, B), T for each image.
        kind: `logit`, z_c; `log-odds`, z_c − log Σ_{j≠c} exp z_j = log(p_c / (1 − p_c)); or `probability`,
            p_c, whose gradient vanishes if the network is certain.
        independent: whether an image may have several of the classes; then log-odds are z_c.

    Raises:
        UserError: no such kind; later, when the scores are computed, a class that the network does not have.
    """
    score = _kind(kind)
    chosen = torch.as_tensor(targets, dtype=torch.long)
    chosen = chosen.view(-1, 1) if chosen.dim() < 2 else chosen

    def scores(output: Tensor) -> Tensor:
        classes = chosen.to(output.device)
        count = outputs.count_classes(output)
        if (classes < 0).any() or (classes >= count).any():
            wrong = classes[(classes < 0) | (classes >= count)][0]
            raise UserError(f"there is no class {wrong}: the network tells {count} apart, from 0")
        return score(output, classes.expand(-1, len(output)), independent)

    return scores


def top_classes(output: Tensor, k: int) -> Tensor:
    """Return the k most probable classes of each image (k, B), in falling order, from output (B, outputs).

    Raises:
        UserError: there are fewer than k classes, or k is not positive.
    """
    count = outputs.count_classes(output)
    if not 1 <= k <= count:
        raise UserError(f"cannot take the {k} likeliest classes of {count}")
    return _sides(output).detach().topk(k, dim=1).indices.T


def _sides(output: Tensor) -> Tensor:
    """Return the logit of each class (B, classes) from logits (B, outputs)."""
    return outputs.both_sides(output) if output.shape[1] == 1 else output


def _kind(name: str) -> Callable[[Tensor, Tensor, bool], Tensor]:
    if name not in _KINDS:
        raise UserError(f"there is no score {name!r}; choose from {', '.join(_KINDS)}")
    return _KINDS[name]


def _logit(output: Tensor, classes: Tensor, _independent: bool) -> Tensor:
    return _sides(output).T.gather(0, classes)


def _log_odds(output: Tensor, classes: Tensor, independent: bool) -> Tensor:
    if independent or output.shape[1] == 1:
        return _logit(output, classes, independent)
    each = output.expand(len(classes), -1, -1)
    others = each.scatter(2, classes[:, :, None], -torch.inf)
    return _logit(output, classes, independent) - others.logsumexp(2)


def _probability(output: Tensor, classes: Tensor, independent: bool) -> Tensor:
    return outputs.probabilities(output, independent).T.gather(0, classes)


_KINDS = {"logit": _logit, "log-odds": _log_odds, "probability": _probability}
