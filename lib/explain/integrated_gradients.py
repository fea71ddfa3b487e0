"""Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# With three times the steps, a third of the midpoints are those there were.
GROWTH = 3


class Attributions(NamedTuple):
    """What each number of an input adds to a score.

    Attributes:
        values: of the input's shape.
        score: of the input, F(x).
        baseline_score: F(x′).
        steps: gradients that were averaged.
    """

    values: Tensor
    score: float
    baseline_score: float
    steps: int

    @property
    def gap(self) -> float:
        """How far the values are from adding up to F(x) − F(x′), which they do in the limit."""
        return float(self.values.double().sum()) - (self.score - self.baseline_score)


def integrated_gradients(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    baseline: Tensor,
    *,
    tolerance: float = 0.01,
    most_steps: int = 1458,
    batch_size: int = 54,
) -> Attributions:
    """Return (x − x′) ⊙ ∫₀¹ ∂F/∂x (x′ + α (x − x′)) dα by the midpoint rule.

    The steps are trebled, from 18 on, until the values add up to F(x) − F(x′) within `tolerance` of it.

    Args:
        score: inputs (S, …) to F of each, (S,).
        x: an input (…).
        baseline: x′, of the same shape.
        tolerance: share of |F(x) − F(x′)|.
        most_steps: where to stop at the latest.
        batch_size: inputs scored at once.
    """
    with torch.no_grad():
        final, first = score(torch.stack([x, baseline])).tolist()
    steps, mean = 18, _mean_gradient(score, x, baseline, _midpoints(18), batch_size)
    while True:
        found = Attributions((x - baseline) * mean, final, first, steps)
        if abs(found.gap) <= tolerance * abs(final - first) or steps >= most_steps:
            return found
        added = [alpha for i, alpha in enumerate(_midpoints(GROWTH * steps)) if i % GROWTH != 1]
        fresh = _mean_gradient(score, x, baseline, added, batch_size)
        mean = (mean + (GROWTH - 1) * fresh) / GROWTH
        steps *= GROWTH


def _midpoints(steps: int) -> list[float]:
    return [(k + 0.5) / steps for k in range(steps)]


def _mean_gradient(score, x: Tensor, baseline: Tensor, alphas: list[float], batch_size: int) -> Tensor:
    total = torch.zeros_like(x)
    for part in torch.tensor(alphas, dtype=x.dtype, device=x.device).split(batch_size):
        points = torch.lerp(baseline, x, part.view(-1, *[1] * x.ndim)).requires_grad_()
        (gradients,) = torch.autograd.grad(score(points).sum(), points)
        total += gradients.sum(0)
    return total / len(alphas)
