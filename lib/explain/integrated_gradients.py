"""Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365)."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.explain import batch_size as batch_sizes
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.progress import UNWATCHED, Stopped, Watch
from lib.runtime.errors import UserError

# With three times the steps, a third of the points are those there were, by any rule but Gauss-Legendre.
GROWTH = 3
FIRST_STEPS = 18
# Inputs scored at once where their size makes no difference.
SMALL_BATCH = 18


class Attributions(NamedTuple):
    """What each number of an input adds to a score, or to each of T scores.

    Attributes:
        values: of the input's shape; (T, …) for T scores, and so on.
        score: of the input, F(x); a number, or (T,).
        baseline_score: F(x′); likewise.
        steps: into which the path was divided.
        evaluations: points of the path at which the gradient was taken (of each score).
        change: share of the values' energy (their sum of squares) that the last trebling of the steps moved,
            the largest of the T; NaN if the number of steps was given.
    """

    values: Tensor
    score: float | Tensor
    baseline_score: float | Tensor
    steps: int
    evaluations: int
    change: float

    @property
    def gap(self) -> float | Tensor:
        """How far the values are from adding up to F(x) − F(x′), which they do in the limit; or (T,)."""
        difference = self.score - self.baseline_score
        if isinstance(difference, Tensor):
            return self.values.cpu().double().flatten(1).sum(1) - difference
        return float(self.values.cpu().double().sum()) - difference


def integrated_gradients(
    scores: Callable[[Tensor], Tensor],
    x: Tensor,
    baseline: Tensor,
    *,
    rule: str = "midpoint",
    steps: int | None = None,
    tolerance: float = 0.01,
    most_steps: int = 1458,
    batch_size: int | None = None,
    watch: Watch = UNWATCHED,
) -> Attributions:
    """Return (x − x′) ⊙ ∫₀¹ ∂F/∂x (x′ + α (x − x′)) dα by a quadrature rule, each exact for a linear F.

    Either `steps` are given, or they are trebled, from 18 on, until for each score both hold: the values
    add up to F(x) − F(x′) within `tolerance` of it, and trebling moved less than `tolerance` of their energy,
    Σ (new − old)² ≤ tolerance · Σ new². (Sums come out right by luck long before the values do.) No gradient
    is taken twice.

    Args:
        scores: inputs (S, …) to F of each, (S,); or to T scores of each, (T, S), which share their forward
            passes.
        x: an input (…).
        baseline: x′, of the same shape.
        rule: `midpoint`; `trapezoid`, with n + 1 points for n steps; `right`; or `gauss-legendre`, with given
            `steps` only, because its points for more steps are all others.
        steps: so many, whatever the tolerance.
        tolerance: a share, as above.
        most_steps: where to stop at the latest.
        batch_size: inputs scored at once; memory grows with it, and not with the steps. Without one, small
            inputs are scored 18 at once, and the fastest size for images is found on the way.
        watch: is told of the points of the path. If it stops the computation, the steps before the last
            trebling are what is known.

    Raises:
        Stopped: nothing was known when the watch stopped the computation.
        UserError: no such rule, no steps, or Gauss-Legendre without a number of steps.
    """
    if rule not in _RULES:
        raise UserError(f"there is no rule {rule!r}; choose from {', '.join(_RULES)}")
    if steps is None and rule not in _KNOWN:
        raise UserError(f"{rule} needs a number of steps: the points for more of them are all others")
    if steps is not None and steps < 1:
        raise UserError(f"cannot integrate in {steps} steps")
    with torch.no_grad():
        ends = scores(torch.stack([x, baseline])).cpu().double()  # not every device has float64
    path = _Path(scores, x, baseline, batch_size, watch)
    if steps is not None:
        values, change = path.integral(*_RULES[rule](steps)), math.nan
    else:
        steps, values, change = _adaptive(path, rule, ends, tolerance, most_steps)
    score, baseline_score = ends.unbind(-1)
    if ends.dim() == 1:
        values, score, baseline_score = values[0], float(score), float(baseline_score)
    return Attributions(values, score, baseline_score, steps, path.evaluations, change)


def _adaptive(
    path: "_Path", rule: str, ends: Tensor, tolerance: float, most_steps: int
) -> tuple[int, Tensor, float]:
    """Return the steps taken, the values (T, …), and the share of energy that the last trebling moved."""
    difference = (ends[..., 0] - ends[..., 1]).view(-1)
    steps = FIRST_STEPS // GROWTH
    values, change = path.integral(*_RULES[rule](steps)), math.inf  # so few steps count for nothing yet
    while True:
        steps, before = steps * GROWTH, values
        alphas, weights = _RULES[rule](steps)
        fresh = [i for i in range(len(alphas)) if i % GROWTH != _KNOWN[rule]]
        try:
            more = path.integral([alphas[i] for i in fresh], [weights[i] for i in fresh])
        except Stopped:
            return steps // GROWTH, before, change
        values = before / GROWTH + more
        change = _change(before, values)
        gap = (values.cpu().double().flatten(1).sum(1) - difference).abs()
        settled = bool((gap <= tolerance * difference.abs()).all()) and change <= tolerance
        if settled or steps * GROWTH > most_steps:
            return steps, values, change


def _change(before: Tensor, after: Tensor) -> float:
    before, after = before.cpu().double().flatten(1), after.cpu().double().flatten(1)
    moved, energy = (after - before).square().sum(1), after.square().sum(1)
    return float(torch.where(moved > 0, moved / energy, 0.0).max())


class _Path:
    """The straight line from a baseline to x, and how many gradients were taken on it."""

    def __init__(self, scores, x: Tensor, baseline: Tensor, batch_size: int | None, watch: Watch):
        self.scores, self.x, self.baseline = scores, x.detach(), baseline.detach()
        self.watch = watch
        self.evaluations = 0
        # Photographs differ by half in speed from size to size; what is small fits the caches anyhow.
        measured = batch_size is None and x.dim() == 3 and batch_sizes.first(x) < SMALL_BATCH
        self.tuner = BatchSizeTuner(batch_sizes.largest(x), batch_sizes.first(x)) if measured else None
        self.batch_size = batch_size or SMALL_BATCH

    def integral(self, alphas: Sequence[float], weights: Sequence[float]) -> Tensor:
        """Return (x − x′) ⊙ Σ_i w_i ∂F/∂x (x′ + α_i (x − x′)), (T, …).

        Raises:
            Stopped: the watch said so before the sum was complete.
        """
        self.watch.expect(len(alphas))
        total: Tensor | float = 0.0
        points = torch.tensor(alphas, dtype=self.x.dtype, device=self.x.device)
        shares = torch.tensor(weights, dtype=self.x.dtype, device=self.x.device)
        done = 0
        while done < len(points):
            if self.watch.is_stopped():
                raise Stopped
            started = time.perf_counter()
            part = slice(done, done + (self.tuner.size if self.tuner else self.batch_size))
            gradients = self._gradients(points[part])
            total = total + torch.stack([torch.tensordot(shares[part], each, 1) for each in gradients])
            count = len(points[part])
            if self.tuner:
                self.tuner.note(count, time.perf_counter() - started)
            done += count
            self.watch.advance(count)
        self.evaluations += len(alphas)
        return (self.x - self.baseline) * total

    def _gradients(self, alphas: Tensor) -> Iterator[Tensor]:
        """The gradient of each of the T scores at points of the path, (S, …), in turn."""
        points = torch.lerp(self.baseline, self.x, alphas.view(-1, *[1] * self.x.dim()))
        points.requires_grad_()
        with torch.enable_grad():
            values = self.scores(points).view(-1, len(points)).sum(1).unbind()
        for index, value in enumerate(values):
            more = index + 1 < len(values)
            yield torch.autograd.grad(value, points, retain_graph=more, materialize_grads=True)[0]


def _midpoint(steps: int) -> tuple[Sequence[float], Sequence[float]]:
    return [(k + 0.5) / steps for k in range(steps)], [1 / steps] * steps


def _right(steps: int) -> tuple[Sequence[float], Sequence[float]]:
    return [(k + 1) / steps for k in range(steps)], [1 / steps] * steps


def _trapezoid(steps: int) -> tuple[Sequence[float], Sequence[float]]:
    inner = [1 / steps] * (steps - 1)
    return [k / steps for k in range(steps + 1)], [0.5 / steps, *inner, 0.5 / steps]


def _gauss_legendre(steps: int) -> tuple[Sequence[float], Sequence[float]]:
    points, weights = np.polynomial.legendre.leggauss(steps)
    return ((1 + points) / 2).tolist(), (weights / 2).tolist()


# Steps to the points α in [0, 1] and the weights of the gradients there, which add up to 1.
_RULES = {
    "midpoint": _midpoint,
    "trapezoid": _trapezoid,
    "right": _right,
    "gauss-legendre": _gauss_legendre,
}
RULES = tuple(_RULES)

# Of three points in a row, the one that was there when there were a third as many steps.
_KNOWN = {"midpoint": 1, "trapezoid": 0, "right": 2}
