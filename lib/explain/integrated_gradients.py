"""Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365).

The attribution of input number i is φ_i = (x − x′)_i ∫₀¹ ∂_i F(x′ + α (x − x′)) dα, for a score F, an input x
and a baseline x′. The sum of all φ_i is F(x) − F(x′), because the integrand's sum is the derivative of F
along the path (the completeness axiom).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.explain import batch_size as batch_sizes
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.explanation import Additivity, Explanation, Request
from lib.explain.gradients import smooth_if_asked
from lib.explain.progress import UNWATCHED, Stopped, Watch
from lib.runtime.errors import UserError

# The number of steps is trebled, because then a third of the new points are the old points, with every rule
# but Gauss-Legendre.
GROWTH = 3
FIRST_STEPS = 18
# The batch size for small inputs, whose speed hardly depends on it.
SMALL_BATCH = 18


class Attributions(NamedTuple):
    """Contributions of each number of an input to a score, or to each of T scores.

    Attributes:
        values: contributions, in the shape of the input; (T, …) for T scores.
        score: F(x), a number, or (T,) for T scores.
        baseline_score: F(x′), likewise.
        steps: number of steps of the path.
        evaluations: number of points of the path at which gradients were computed.
        change: Σ (new − old)² / Σ new² of the values at the last trebling of the steps, the largest of the T
            scores; NaN if the number of steps was given.
    """

    values: Tensor
    score: float | Tensor
    baseline_score: float | Tensor
    steps: int
    evaluations: int
    change: float

    @property
    def gap(self) -> float | Tensor:
        """The sum of the values less F(x) − F(x′), which tends to 0 with more steps; (T,) for T scores."""
        difference = self.score - self.baseline_score
        if isinstance(difference, Tensor):
            return self.values.cpu().double().flatten(1).sum(1) - difference
        return float(self.values.cpu().double().sum()) - difference


def explain(request: Request) -> Explanation:
    """Return the integrated gradients of the pixels of each image, with how exactly they add up.

    The numbers of the explanation are those of each target: the baseline's score, its difference from the
    image's, the completeness gap, the change of the map at the last trebling of the steps (NaN if their
    number was given), and whether gap and change are within the tolerance.

    Raises:
        UserError: as `integrated_gradients` does.
        Stopped: the watch stopped the computation before there was a result for every image.
    """
    found = [
        _of_image(request, image[None], start)
        for image, start in zip(request.images, request.start, strict=True)
    ]
    values = torch.stack([values for values, _ in found], dim=1)
    runs = [runs for _, runs in found]
    targets, settings = len(values), request.settings
    full, empty, difference, gap = (
        torch.stack([take(each) for each in runs], dim=1)
        for take in (
            lambda each: _mean([run.score for run in each]),
            lambda each: each[0].baseline_score,
            lambda each: _mean([run.score - run.baseline_score for run in each]),
            lambda each: _mean([run.gap for run in each]),
        )
    )
    sums = Additivity(full, empty, difference, gap)
    largest = [max(run.change for run in each) for each in runs]
    change = torch.tensor(largest, dtype=torch.float64).expand(targets, -1)
    steps = torch.tensor([max(run.steps for run in each) for each in runs]).expand(targets, -1)
    tolerance = settings["tolerance"]
    converged = (sums.gap_share <= tolerance) & ~(change > tolerance)  # a change of NaN counts as small
    evaluations = sum(run.evaluations for each in runs for run in each)
    return Explanation(
        {"": values},
        _output(request),
        evaluations + 2 * sum(map(len, runs)),
        evaluations * targets,
        additivity=sums,
        numbers={
            "rule": settings["quadrature"],
            "baseline_score": empty,
            "score_difference": difference,
            "completeness_gap": gap,
            "gap_share": sums.gap_share,
            "map_change": change,
            **({} if settings["steps"] else {"converged": converged}),
            "steps": steps,
        },
    )


class _Run(NamedTuple):
    """The scalars of the attributions of one (noisy) image; for the fields, see `Attributions`."""

    score: Tensor
    baseline_score: Tensor
    gap: Tensor
    change: float
    steps: int
    evaluations: int


def _of_image(request: Request, image: Tensor, start: Tensor) -> tuple[Tensor, list[_Run]]:
    """Return the attributions (T, C, H, W) of an image (1, C, H, W), and the scalars of each noisy image."""
    runs: list[_Run] = []
    settings = request.settings

    def attribute(shown: Tensor) -> Tensor:
        found: Any = integrated_gradients(
            lambda points: request.scores(request.network.logits(points)),
            shown[0],
            start,
            rule=settings["quadrature"],
            steps=settings["steps"],
            tolerance=settings["tolerance"],
            batch_size=settings["batch-size"],
            watch=request.watch,
        )
        runs.append(_Run(*(getattr(found, name) for name in _Run._fields)))
        return found.values

    return smooth_if_asked(settings, attribute, image), runs


def _mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0]) / len(values)


def _output(request: Request) -> Tensor:
    with torch.no_grad():
        return request.network.logits(request.images)


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
    """Return (x − x′) ⊙ ∫₀¹ ∂F/∂x (x′ + α (x − x′)) dα by a quadrature rule, exactly for a linear F.

    If `steps` is None, the path has 18 steps at first, and their number is trebled until both conditions hold
    for each score: the values add up to F(x) − F(x′) within the share `tolerance` of it, and the last
    trebling changed the values by Σ (new − old)² ≤ tolerance · Σ new². The second condition is needed because
    the sum is often right by chance long before the values are. No gradient is computed twice.

    Args:
        scores: function from inputs (S, …) to F of each (S,), or to T scores of each (T, S), which share
            their forward passes.
        x: an input (…).
        baseline: x′, of the same shape.
        rule: `midpoint`; `trapezoid`, with n + 1 points for n steps; `right`; or `gauss-legendre`, which
            needs `steps`, because none of its points is used again with more steps.
        steps: number of steps; then `tolerance` is ignored.
        tolerance: share, as above.
        most_steps: limit of the number of steps.
        batch_size: number of inputs per forward pass. Memory grows with it, but not with the steps. By
            default, the fastest size is searched for if x is an image (C, H, W); it is 18 otherwise.
        watch: follows the points of the path. If it stops the computation, the result is the one before the
            last trebling.

    Raises:
        Stopped: the watch stopped the computation before the first result.
        UserError: no such rule, no steps, or Gauss-Legendre without a number of steps.
    """
    if rule not in _RULES:
        raise UserError(f"there is no rule {rule!r}; choose from {', '.join(_RULES)}")
    if steps is None and rule not in _KNOWN:
        raise UserError(f"{rule} needs a number of steps, because more steps have none of the same points")
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
        return Attributions(values[0], float(score), float(baseline_score), steps, path.evaluations, change)
    return Attributions(values, score, baseline_score, steps, path.evaluations, change)


def _adaptive(
    path: "_Path", rule: str, ends: Tensor, tolerance: float, most_steps: int
) -> tuple[int, Tensor, float]:
    """Return the number of steps, the values (T, …) and their relative change at the last trebling."""
    difference = (ends[..., 0] - ends[..., 1]).view(-1)
    steps = FIRST_STEPS // GROWTH
    # These first steps only give the values that those of FIRST_STEPS are compared with.
    values, change = path.integral(*_RULES[rule](steps)), math.inf
    while True:
        steps, before = steps * GROWTH, values
        alphas, weights = _RULES[rule](steps)
        # The old points are every third of the new ones, with a third of their old weights: only the others
        # are computed.
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
    """Return Σ (after − before)² / Σ after², the largest of the T scores."""
    before, after = before.cpu().double().flatten(1), after.cpu().double().flatten(1)
    moved, energy = (after - before).square().sum(1), after.square().sum(1)
    return float(torch.where(moved > 0, moved / energy, 0.0).max())


class _Path:
    """The straight line from a baseline to x, and the number of points at which gradients were computed."""

    def __init__(
        self,
        scores: Callable[[Tensor], Tensor],
        x: Tensor,
        baseline: Tensor,
        batch_size: int | None,
        watch: Watch,
    ) -> None:
        self.scores, self.x, self.baseline = scores, x.detach(), baseline.detach()
        self.watch = watch
        self.evaluations = 0
        # The batch size changes the speed for photographs by up to a half; small inputs fit the caches
        # anyway.
        self.is_large = x.dim() == 3 and not batch_sizes.is_small(x)
        measured = batch_size is None and self.is_large
        self.tuner = BatchSizeTuner(batch_sizes.largest(x), batch_sizes.first(x)) if measured else None
        self.batch_size = batch_size or SMALL_BATCH

    def integral(self, alphas: Sequence[float], weights: Sequence[float]) -> Tensor:
        """Return (x − x′) ⊙ Σ_i w_i ∂F/∂x (x′ + α_i (x − x′)), (T, …).

        Raises:
            Stopped: the watch stopped the computation before the sum was complete.
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
            try:
                gradients = self._gradients(points[part])
                total = total + torch.stack([torch.tensordot(shares[part], each, 1) for each in gradients])
            except RuntimeError as error:
                if self.tuner is None or not batch_sizes.is_out_of_memory(error):
                    raise
                self.tuner.halve()
                continue
            count = len(points[part])
            if self.tuner:
                self.tuner.note(count, time.perf_counter() - started)
            done += count
            self.watch.advance(count)
        self.evaluations += len(alphas)
        return (self.x - self.baseline) * total

    def _gradients(self, alphas: Tensor) -> Iterator[Tensor]:
        """Yield, for each of the T scores, its gradients (S, …) at the points of the path."""
        points = torch.lerp(self.baseline, self.x, alphas.view(-1, *[1] * self.x.dim()))
        if self.is_large and points.device.type == "cpu":
            # With channels last, a gradient of SqueezeNet takes 30 % less time on a CPU.
            points = points.contiguous(memory_format=torch.channels_last)
        points.requires_grad_()
        with torch.enable_grad():
            # One backward pass for the sum over the points, because each point affects only its own score.
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


# Functions from the number of steps to points α in [0, 1] and their weights, which add up to 1.
_RULES = {
    "midpoint": _midpoint,
    "trapezoid": _trapezoid,
    "right": _right,
    "gauss-legendre": _gauss_legendre,
}
RULES = tuple(_RULES)

# After a trebling: which of three points in a row (0, 1 or 2) is an old point.
_KNOWN = {"midpoint": 1, "trapezoid": 0, "right": 2}
