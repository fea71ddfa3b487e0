"""Shapley values of a game (Shapley 1953), exact or estimated, with their standard errors.

A game is a function of coalitions (S, n), booleans, to values (S, T) float64 of T games with the same
players. A game that is stopped answers for the first of the coalitions only.

    exact         all 2ⁿ coalitions
    odd-gp        a Gaussian process with a spatial prior, on complementary pairs (`spatial_process`)
    permutation   antithetic orders, each player's gain as he joins (Castro et al. 2009; Mitchell et al. 2022)
    per-patch     for each player by himself, random coalitions with him and without

Whatever the estimator, the values add up to v(N) − v(∅).
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
HALF_WIDTH = 1.96  # standard errors: half of an interval of that confidence
FEWEST_EVALUATIONS_A_PLAYER = 3


@dataclass(frozen=True)
class Plan:
    """How much an estimate may cost, and when it is good enough.

    Attributes:
        budget: of evaluations.
        tolerance: stop as soon as all values of a game are within it of the truth with a probability of
            95 %, which is a little more than that no 95 % interval is wider; None for the whole budget.
        seed: of the coalitions drawn.
        report: is told the largest half-width so far, at every look.
        watched: whether to look before the budget is spent, though there is no tolerance.
    """

    budget: int
    tolerance: float | None = None
    seed: int = 42
    report: Callable[[float], object] = lambda _half_width: None
    watched: bool = False


class Estimate(NamedTuple):
    """Shapley values of T games with n players.

    Attributes:
        values: (T, n) float64.
        standard_errors: (T, n); 0 if exact, infinite where one sample says nothing of its spread.
        empty, full: v(∅) and v(N), (T,).
        coalitions: (S, n) all that were evaluated, and `outcomes` (S, T) their values.
        converged: False if the game was stopped, or the budget spent before the tolerance was met.
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
        """How many values of the game were asked for."""
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
    """Return Σ_S |S|! (n − 1 − |S|)! / n! · (v(S ∪ i) − v(S)), by asking about every coalition.

    Pairs of complements are asked in random order: a game that is stopped leaves a sample of them, which
    `odd-gp` can work with. Arguments as for `odd_gp`; the tolerance plays no part.
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
    """Return how much each value v(S) counts in each player's Shapley value, (S, n)."""
    n = coalitions.shape[1]
    size = coalitions.sum(1, keepdim=True).double()
    log_factorial = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64))
    present = torch.exp(torch.lgamma(size) + torch.lgamma(n - size + 1) - log_factorial)
    absent = torch.exp(torch.lgamma(size + 1) + torch.lgamma(n - size) - log_factorial)
    return torch.where(coalitions, present, -absent)


def odd_gp(game: Game, positions: Tensor, plan: Plan) -> Estimate:
    """Return the posterior mean and deviation of a Gaussian process on the odd part of the game.

    Args:
        game: as above.
        positions: (n, 2) float64, of the players' centres in units of their mean spacing.
        plan: its budget is to hold three evaluations a player.
    """
    n = len(positions)
    pairs = draw.distinct_pairs(n, (plan.budget - 2) // 2, draw.generator_of(plan.seed))
    sample = _Sample(game, draw.with_complements(pairs))

    def posterior() -> tuple[Tensor, Tensor]:
        return _odd_gp_posterior(sample, positions)

    return _in_stages(sample, posterior, math.ceil(FEWEST_EVALUATIONS_A_PLAYER * n / 2), plan)


def _odd_gp_posterior(sample: "_Sample", positions: Tensor) -> tuple[Tensor, Tensor]:
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
    """Return the mean gain of each player as he joins those before him, in antithetic random orders.

    Arguments as for `odd_gp`; the standard errors are those of the mean over pairs of orders.
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
    """Return each player's mean gain over random coalitions of the others, drawn for him alone.

    Arguments as for `odd_gp`. This is what is easiest to write, and here to compare with.
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
    """Coalitions to be evaluated in units that belong together, and what is known of them.

    Attributes:
        empty, full: v(∅) and v(N), (T,).
        is_stopped: the game has left coalitions unanswered.
    """

    def __init__(self, game: Game, design: Tensor):
        """Ask about both ends; `design` (U, k, n) holds what else is to be asked, k coalitions a unit."""
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
        """How many units there are."""
        return len(self._design)

    def take(self, count: int) -> None:
        """Evaluate the first `count` units, as far as that is not yet done."""
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
        """All coalitions (S, n) that were evaluated, and their values (S, T)."""
        coalitions = self._design.flatten(0, 1)[: len(self._outcomes)]
        ends = torch.stack([self.empty, self.full])
        return torch.cat([self._ends, coalitions]), torch.cat([ends, self._outcomes])


def _in_stages(
    sample: _Sample, estimate: Callable[[], tuple[Tensor, Tensor]], first: int, plan: Plan
) -> Estimate:
    """Evaluate, and look whether that is enough, at `first` units and whenever their number has doubled.

    A look does not change what is drawn or estimated later.
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
        is_good = plan.tolerance is None or _confidence(errors, plan.tolerance) >= CONFIDENCE
        if sample.is_stopped or (plan.tolerance and is_good):
            break
    return _finish(sample, values, errors, converged=is_good and not sample.is_stopped)


def _confidence(errors: Tensor, tolerance: float) -> float:
    """Return how probable it is that no value is off by more than `tolerance`, in the worst of T games.

    Of 64 intervals of 95 %, three are expected to miss: who asks for values to a tolerance means all of them.
    """
    each = torch.erf(tolerance / (math.sqrt(2) * errors.clamp_min(1e-300)))
    return float(each.prod(dim=1).min())


def _finish(sample: _Sample, values: Tensor, errors: Tensor, converged: bool) -> Estimate:
    """Return the estimate, with what is missing from v(N) − v(∅) shared out.

    Each player gets a share in proportion to the variance of his value, the least change for its likelihood:
    who is known without error stays as he is.
    """
    missing = sample.full - sample.empty - values.sum(1)
    variance = errors.square()
    total = variance.sum(1, keepdim=True)
    even = torch.full_like(variance, 1 / variance.shape[1])
    shares = torch.where((total > 0) & total.isfinite(), variance / total, even)
    values = values + missing[:, None] * shares
    return Estimate(values, errors, sample.empty, sample.full, *sample.evaluated, converged)
