"""Shapley values of a game (Shapley 1953), exact or estimated, with their standard errors.

A game is a function from coalitions (S, n) bool to the values (S, T) float64 of T games with the same
players. A game that is stopped returns the values of the first coalitions only.

    exact         all 2ⁿ coalitions
    odd-gp        Gaussian process with a spatial prior, on complementary pairs (`spatial_process`)
    permutation   gains of the players as they join in antithetic random orders (Castro et al. 2009; Mitchell
                  et al. 2022)
    per-patch     for each player separately, random coalitions with that player and without

With every estimator, the values add up to v(N) − v(∅).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain import coalitions as draw
from lib.explain.kernels import spatial_kernels
from lib.explain.spatial_process import shapley_posterior
from lib.runtime.errors import RunFailed

Game = Callable[[Tensor], Tensor]

CONFIDENCE = 0.95
HALF_WIDTH = 1.96  # half width of a 95 % interval, in standard errors
FEWEST_EVALUATIONS_A_PLAYER = 3


@dataclass(frozen=True)
class Plan:
    """The cost limit and the stopping rule of an estimate.

    Attributes:
        budget: largest number of evaluations.
        tolerance: stop as soon as, with a probability of 95 %, all values of a game are within this distance
            of the truth; None to spend the whole budget. This is stricter than the condition that each 95 %
            interval is within the tolerance.
        seed: seed of the random coalitions.
        report: called with the largest half width so far, whenever an estimate is made.
        known: coalitions (K, n) whose values cost nothing, because an earlier run has paid for them; None if
            there are none. `odd-gp` asks about them first.
        watched: whether to make estimates before the budget is spent even if there is no tolerance.
    """

    budget: int
    tolerance: float | None = None
    seed: int = 42
    report: Callable[[float], object] = lambda _half_width: None
    known: Tensor | None = None
    watched: bool = False


class Estimate(NamedTuple):
    """Shapley values of T games with n players.

    Attributes:
        values: Shapley values (T, n) float64.
        standard_errors: (T, n); 0 if exact, infinite if there is only one sample.
        empty, full: v(∅) and v(N), each (T,).
        coalitions: all evaluated coalitions (S, n).
        outcomes: their values (S, T).
        converged: False if the game was stopped, or if the budget was spent before the tolerance was met.
    """

    values: Tensor
    standard_errors: Tensor
    empty: Tensor
    full: Tensor
    coalitions: Tensor
    outcomes: Tensor
    converged: bool

    @property
    def evaluations(self) -> int:
        """The number of evaluated coalitions."""
        return len(self.outcomes)

    @property
    def half_width(self) -> float:
        """Half of the widest 95 % interval."""
        return HALF_WIDTH * float(self.standard_errors.max())


Estimator = Callable[[Game, Tensor, Plan], Estimate]


def choose(n: int, budget: int) -> str:
    """Return the name of the best estimator for n players."""
    return "exact" if 2**n <= budget else "odd-gp"


def exact(game: Game, positions: Tensor, plan: Plan) -> Estimate:
    """Return Σ_S |S|! (n − 1 − |S|)! / n! · (v(S ∪ i) − v(S)), from the values of all coalitions.

    Complementary pairs are evaluated in random order, so that `odd-gp` can estimate from them if the game is
    stopped. Arguments as for `odd_gp`; the tolerance is ignored.
    """
    n = len(positions)
    halves = draw.all_coalitions(n)[1 : max(1, 2 ** (n - 1))]
    order = torch.randperm(len(halves), generator=draw.generator_of(plan.seed))
    sample = _Sample(game, draw.with_complements(halves[order]))
    sample.take(len(halves))
    if sample.is_stopped:
        return _finish(sample, *_odd_gp_posterior(sample, positions), converged=False)
    coalitions, outcomes = sample.evaluated
    values = (shapley_weights(coalitions).T @ outcomes).T
    return _finish(sample, values, torch.zeros_like(values), converged=True)


def shapley_weights(coalitions: Tensor) -> Tensor:
    """Return the weight (S, n) of each value v(S) in each player's Shapley value.

    It is (|S| − 1)! (n − |S|)! / n! for players in S, and −|S|! (n − 1 − |S|)! / n! for the others.
    """
    n = coalitions.shape[1]
    size = coalitions.sum(1, keepdim=True).double()
    log_factorial = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64))
    present = torch.exp(torch.lgamma(size) + torch.lgamma(n - size + 1) - log_factorial)
    absent = torch.exp(torch.lgamma(size + 1) + torch.lgamma(n - size) - log_factorial)
    return torch.where(coalitions, present, -absent)


def odd_gp(game: Game, positions: Tensor, plan: Plan) -> Estimate:
    """Return the posterior mean and standard deviation under a Gaussian process on the odd part of the game.

    Args:
        game: see the docstring of this module.
        positions: the players' centres (n, 2) float64, in units of their mean spacing.
        plan: budget and stopping rule; the budget must be at least three evaluations per player.
    """
    n = len(positions)
    pairs = draw.distinct_pairs(n, (plan.budget - 2) // 2, draw.generator_of(plan.seed))
    if plan.known is not None:
        pairs = draw.known_first(pairs, draw.pairs_among(plan.known))
    sample = _Sample(game, draw.with_complements(pairs))

    def posterior() -> tuple[Tensor, Tensor]:
        return _odd_gp_posterior(sample, positions)

    return _in_stages(sample, posterior, math.ceil(FEWEST_EVALUATIONS_A_PLAYER * n / 2), plan)


def _odd_gp_posterior(sample: "_Sample", positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values and standard errors (T, n) from a sample of complementary pairs.

    Raises:
        RunFailed: the game was stopped after too few evaluations.
    """
    coalitions, outcomes = sample.units
    if 2 * len(outcomes) + 2 < min(FEWEST_EVALUATIONS_A_PLAYER * len(positions), 2 ** len(positions)):
        raise RunFailed(f"stopped after {2 * len(outcomes) + 2} evaluations: too few to say anything")
    found = shapley_posterior(
        spatial_kernels(positions),
        coalitions[:, 0],
        (outcomes[:, 0] - outcomes[:, 1]) / 2,
        (sample.full - sample.empty) / 2,
    )
    return found.values, found.standard_errors


def permutation(game: Game, positions: Tensor, plan: Plan) -> Estimate:
    """Return each player's mean gain from joining the players before it, over antithetic random orders.

    Arguments as for `odd_gp`. The standard errors are those of the mean over pairs of an order and its
    reverse.
    """
    n = len(positions)
    count = max(1, (plan.budget - 2) // (2 * max(1, n - 1)))
    orders = draw.antithetic_orders(n, count, draw.generator_of(plan.seed))
    sample = _Sample(game, draw.prefixes(orders).flatten(1, 2))

    def mean() -> tuple[Tensor, Tensor]:
        _, outcomes = sample.units  # (pairs, 2 (n − 1), T)
        paths = outcomes.unflatten(1, (2, -1))
        ends = (end.expand(len(paths), 2, 1, -1) for end in (sample.empty, sample.full))
        empty, full = ends
        gains = torch.cat([empty, paths, full], dim=2).diff(dim=2)  # (pairs, 2, n, T), in order of joining
        places = orders[: len(paths)].argsort(-1)[..., None].expand_as(gains)
        return _mean_and_error(gains.gather(2, places).mean(1))

    return _in_stages(sample, mean, 1, plan)


def per_patch(game: Game, positions: Tensor, plan: Plan) -> Estimate:
    """Return each player's mean gain over random coalitions of the others, drawn for that player only.

    Arguments as for `odd_gp`. This is the simplest estimator, for comparison.
    """
    n = len(positions)
    count = max(1, (plan.budget - 2) // (2 * n))
    sample = _Sample(game, draw.contexts(n, count, draw.generator_of(plan.seed)).flatten(1, 2))

    def mean() -> tuple[Tensor, Tensor]:
        _, outcomes = sample.units  # (contexts, 2 n, T)
        present, absent = outcomes.unflatten(1, (n, 2)).unbind(2)
        return _mean_and_error(present - absent)

    return _in_stages(sample, mean, 1, plan)


ESTIMATORS: dict[str, Estimator] = {
    "exact": exact,
    "odd-gp": odd_gp,
    "permutation": permutation,
    "per-patch": per_patch,
}


def _mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of independent `samples` (U, n, T) and its standard error, both (T, n)."""
    count = len(samples)
    error = samples.std(0) / math.sqrt(count) if count > 1 else torch.full_like(samples[0], math.inf)
    return samples.mean(0).T, error.T


class _Sample:
    """Coalitions to evaluate, in units of k coalitions that are used together, and their values.

    Args:
        game: evaluated at once for the empty and the full coalition.
        design: the other coalitions (U, k, n), evaluated later by `take`.

    Attributes:
        empty, full: v(∅) and v(N), each (T,).
        is_stopped: whether the game has left coalitions without a value.

    Raises:
        RunFailed: the game was stopped before these two evaluations.
    """

    def __init__(self, game: Game, design: Tensor) -> None:
        self._game = game
        self._design = design
        n = design.shape[2]
        self._ends = torch.tensor([[False], [True]]).expand(2, n)
        ends = game(self._ends)
        if len(ends) < 2:
            raise RunFailed(f"stopped after {len(ends)} evaluations: too few to say anything")
        self.empty, self.full = ends
        self._outcomes = ends[:0]
        self.is_stopped = False

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self._design)

    def take(self, count: int) -> None:
        """Evaluate those of the first `count` units that have no values yet."""
        wanted = self._design[:count].flatten(0, 1)
        fresh = self._game(wanted[len(self._outcomes) :])
        if len(fresh):
            self._outcomes = torch.cat([self._outcomes, fresh])
        self.is_stopped = len(self._outcomes) < len(wanted)

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """The coalitions (U, k, n) and outcomes (U, k, T) of the units that are complete."""
        size = self._design.shape[1]
        count = len(self._outcomes) // size if size else 0
        outcomes = self._outcomes[: count * size].view(count, size, self._outcomes.shape[1])
        return self._design[:count], outcomes

    @property
    def evaluated(self) -> tuple[Tensor, Tensor]:
        """All evaluated coalitions (S, n), the empty and the full one first, and their values (S, T)."""
        coalitions = self._design.flatten(0, 1)[: len(self._outcomes)]
        ends = torch.stack([self.empty, self.full])
        return torch.cat([self._ends, coalitions]), torch.cat([ends, self._outcomes])


def _in_stages(
    sample: _Sample, estimate: Callable[[], tuple[Tensor, Tensor]], first: int, plan: Plan
) -> Estimate:
    """Evaluate in stages until the estimate is good enough, each with twice as many units as the one before.

    The first stage has at least `first` units, the last one all. The coalitions do not depend on the stages,
    so the estimate from all units is the same with earlier estimates and without.
    """
    total = len(sample)
    stages = [total]
    while plan.tolerance or plan.watched:
        if stages[0] < 2 * first:
            break
        stages.insert(0, math.ceil(stages[0] / 2))
    for stage in stages:
        sample.take(stage)
        if sample.is_stopped and not len(sample.units[1]):
            raise RunFailed("stopped before there was anything to say")
        values, errors = estimate()
        plan.report(HALF_WIDTH * float(errors.max()))
        is_good = bool(errors.isfinite().all())  # one sample alone says nothing of its error
        if plan.tolerance is not None:
            is_good = is_good and _confidence(errors, plan.tolerance) >= CONFIDENCE
        if sample.is_stopped or (plan.tolerance and is_good):
            break
    return _finish(sample, values, errors, converged=is_good and not sample.is_stopped)


def _confidence(errors: Tensor, tolerance: float) -> float:
    """Return the probability that no value is off by more than `tolerance`, the smallest of the T games.

    All values must hold at once, because of 64 intervals of 95 % each, three are expected to miss the truth.
    The errors are taken as independent and normal: P(|e| ≤ tolerance) = erf(tolerance / (√2 σ)).
    """
    each = torch.erf(tolerance / (math.sqrt(2) * errors.clamp_min(1e-300)))
    return float(each.prod(dim=1).min())


def _finish(sample: _Sample, values: Tensor, errors: Tensor, converged: bool) -> Estimate:
    """Return the estimate, adjusted so that the values add up to v(N) − v(∅).

    The difference is distributed in proportion to the values' variances σ². These are the most likely
    corrections δ for independent normal errors: minimising Σ δ² / σ² with Σ δ given makes δ ∝ σ². Values
    without error stay the same.
    """
    missing = sample.full - sample.empty - values.sum(1)
    variance = errors.square()
    total = variance.sum(1, keepdim=True)
    even = torch.full_like(variance, 1 / variance.shape[1])
    shares = torch.where((total > 0) & total.isfinite(), variance / total, even)
    values = values + missing[:, None] * shares
    return Estimate(values, errors, sample.empty, sample.full, *sample.evaluated, converged)
