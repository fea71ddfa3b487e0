"""Shapley values from a Gaussian process on the odd part of a game.

Only the odd part w(S) = (v(S) − v(Sᶜ)) / 2 of a game has Shapley values. Those of the even part cancel: the
gain of player i at a coalition S of the others is minus the gain at the complement of S ∪ i, which has the
same weight. So the data y are the odd values of coalitions t, each from a pair of evaluations, and that of
the full coalition, w(N) = (v(N) − v(∅)) / 2, which is known exactly. The model is

    w ~ GP(0, k),    k = Σ_j θ_j k_j,    y = w(t) + noise,

where the noise of variance θ_ε stands for the part of w that no kernel explains. The Shapley values φ are
linear in w, so φ and y are jointly Gaussian with mean 0 and the covariances

    Cov(y, y) = K = k(t, t) + θ_ε I    (with 1e-8 θ_ε for w(N)),
    Cov(y, φ) = F, the Shapley values of the functions k(·, t),
    Cov(φ, φ) = P.

Conditioning on y gives φ | y ~ N(Fᵀ K⁻¹ y, P − Fᵀ K⁻¹ F) (Rasmussen & Williams 2006, chapter 2). With the
Cholesky factor K = L Lᵀ, the mean is (L⁻¹ F)ᵀ L⁻¹ y, and the variance of φ_i is P_ii − Σ_m (L⁻¹ F)_mi². The
hyper-parameters θ maximise the posterior density of log θ given y (see `variance_components`). Each game has
its own: shared with an easy game, those of a hard one made it too sure (95 % intervals of threshold games
held 77 % of the values instead of 92). The standard errors are then checked on the data (`error_check`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain import error_check, variance_components
from lib.explain.kernels import Kernel

EXACT = 1e-8  # noise variance of w(N), as a share of θ_ε
# The most rows of y in the marginal likelihood. With 300, the error was 5 to 27 times larger on some images.
ROWS_OF_LIKELIHOOD = 1024
# The most rows of y in one block; the time to condition on a block is cubic in its rows.
ROWS_AT_ONCE = 2048
# The most rows whose prediction from the others is checked.
ROWS_TO_CHECK = 512
GAMES_AT_ONCE = 4  # each takes the memory of two blocks' covariances
USUAL_LOG_NOISE = -6.0  # where the search for θ_ε starts


class Posterior(NamedTuple):
    """Posterior of the Shapley values.

    Attributes:
        values: posterior means (T, n).
        standard_errors: posterior standard deviations (T, n), wider where the data show that the process is
            too sure.
    """

    values: Tensor
    standard_errors: Tensor


class _Conditioned(NamedTuple):
    """Posterior of one game from a block of m rows.

    Attributes:
        values: posterior means (n,).
        half: L⁻¹ F (m, n).
        lower: Cholesky factor L of K (m, m).
    """

    values: Tensor
    half: Tensor
    lower: Tensor


class _Block(NamedTuple):
    """Rows z (m, n) of which the first is the full coalition, and their values y (m, T)."""

    z: Tensor
    y: Tensor


def shapley_posterior(
    kernels: Sequence[Kernel], coalitions: Tensor, odd_values: Tensor, full_odd_value: Tensor
) -> Posterior:
    """Return the Shapley values of T games, given their odd values at the same coalitions.

    More than 2,048 rows are divided into blocks, and the posteriors of the blocks are averaged. The values of
    a game do not depend on the other games.

    Args:
        kernels: kernels of the prior.
        coalitions: one of each complementary pair (P, n) bool, in random order.
        odd_values: w of these coalitions (P, T) float64.
        full_odd_value: w(N) (T,).
    """
    groups = zip(odd_values.split(GAMES_AT_ONCE, dim=1), full_odd_value.split(GAMES_AT_ONCE), strict=True)
    found = [_posterior(kernels, coalitions, *group) for group in groups]
    values, errors = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Posterior(values, errors)


def _posterior(
    kernels: Sequence[Kernel], coalitions: Tensor, odd_values: Tensor, full_odd_value: Tensor
) -> Posterior:
    """Return the same as `shapley_posterior`, for a few games."""
    # Each game is scaled to mean square 1, for which the prior of θ is made.
    scale = torch.cat([full_odd_value[None], odd_values]).square().mean(0).sqrt()
    divisor = torch.where(scale > 0, scale, 1)
    blocks = _blocks(2.0 * coalitions.double() - 1, odd_values / divisor, full_odd_value / divisor)
    log_thetas, lowers = _fitted(kernels, blocks[0])  # θ of the first block serves for all
    thetas = log_thetas.exp()[:, :-1]
    parts = [_condition(kernels, thetas, lowers, blocks[0])]
    for block in blocks[1:]:
        parts.append(_condition(kernels, thetas, _factors(kernels, block.z, log_thetas), block))
    variances = _variances(kernels, thetas, blocks, parts)
    # The last rows of the first block are checked: all but the full coalition if there are few.
    rows = min(len(blocks[0].z) - 1, ROWS_TO_CHECK)
    first = coalitions[: len(blocks[0].z) - 1]
    design = error_check.design(coalitions, first[len(first) - rows :])
    values, errors = [], []
    for game, variance in enumerate(variances):
        values.append(torch.stack([part[game].values for part in parts]).mean(0))
        check = error_check.leave_one_out(parts[0][game].lower, blocks[0].y[:, game], rows)
        errors.append(error_check.widened(variance.clamp_min(0).sqrt(), check, design))
    return Posterior(scale[:, None] * torch.stack(values), scale[:, None] * torch.stack(errors))


def _blocks(z: Tensor, y: Tensor, full: Tensor) -> list[_Block]:
    """Return the rows in blocks of about equal size; each begins with the full coalition, known exactly."""
    rows = math.ceil(len(z) / math.ceil((len(z) + 1) / ROWS_AT_ONCE)) if len(z) else 1
    return [
        _Block(torch.cat([torch.ones_like(z[:1]), part]), torch.cat([full[None], values]))
        for part, values in zip(z.split(rows), y.split(rows), strict=True)
    ]


def _weighted_sums(thetas: Tensor, parts: Iterable[Tensor]) -> list[Tensor]:
    """Return Σ_j θ_tj part_j for each game t, with one part in memory at a time."""
    totals = [torch.zeros((), dtype=torch.float64)] * len(thetas)
    for weights, part in zip(thetas.T.tolist(), parts, strict=True):
        for game, weight in enumerate(weights):
            # In place from the second part on: matrices of 2,048 rows are slow to make.
            total = totals[game]
            totals[game] = total.add_(part, alpha=weight) if total.dim() else weight * part
    return totals


def _noise(z: Tensor) -> Tensor:
    """Return the diagonal (m,) of the noise's covariance, divided by θ_ε; the first row is w(N)."""
    noise = torch.ones_like(z[:, 0])
    noise[0] = EXACT
    return noise


def _fitted(kernels: Sequence[Kernel], block: _Block) -> tuple[Tensor, list[Tensor]]:
    """Return log θ (T, K + 1), with log θ_ε last, and each game's Cholesky factor of K for all rows."""
    few = block.z[:ROWS_OF_LIKELIHOOD]
    grams, noise = few.new_empty(len(kernels), len(few), len(few)), _noise(few)
    for gram, kernel in zip(grams, kernels, strict=True):
        gram.copy_(kernel.symmetric_gram(few))  # one by one, so that the memory of one serves the next
    start = torch.tensor([kernel.usual_log_weight for kernel in kernels] + [USUAL_LOG_NOISE]).double()
    found = variance_components.fit_each(grams, noise, block.y[:ROWS_OF_LIKELIHOOD], start)
    log_thetas = torch.stack([each.log_theta for each in found])
    if len(few) == len(block.z):
        return log_thetas, [each.lower for each in found]
    del grams
    return log_thetas, _factors(kernels, block.z, log_thetas)


def _factors(kernels: Sequence[Kernel], z: Tensor, log_thetas: Tensor) -> list[Tensor]:
    """Return the Cholesky factor of K for each game.

    The kernels are added one by one, because all of them together take many times the memory of K.
    """
    totals = _weighted_sums(log_thetas.exp()[:, :-1], (kernel.symmetric_gram(z) for kernel in kernels))
    empty = z.new_zeros(0, len(z), len(z))
    for total, log_theta in zip(totals, log_thetas, strict=True):
        total.add_(variance_components.covariance(empty, _noise(z), log_theta[-1:]))
    return [torch.linalg.cholesky(total) for total in totals]


def _condition(
    kernels: Sequence[Kernel], thetas: Tensor, lowers: Sequence[Tensor], block: _Block
) -> list[_Conditioned]:
    """Return each game's posterior given a block, with its Cholesky factor of K."""
    functionals = _weighted_sums(thetas, (kernel.shapley(block.z) for kernel in kernels))  # F (m, n)
    found = []
    for functional, lower, y in zip(functionals, lowers, block.y.T, strict=True):
        solved = torch.linalg.solve_triangular(lower, torch.cat([functional, y[:, None]], dim=1), upper=False)
        half, whitened = solved[:, :-1], solved[:, -1]
        found.append(_Conditioned(whitened @ half, half, lower))
    return found


def _variances(
    kernels: Sequence[Kernel],
    thetas: Tensor,
    blocks: Sequence[_Block],
    parts: Sequence[Sequence[_Conditioned]],
) -> list[Tensor]:
    """Return each game's posterior variances (n,), those of the mean over all blocks.

    The mean of B errors whose variances are V on average, and whose covariances are C, has the variance C +
    (V − C) / B. The errors of two blocks are φ − F₁ᵀ K₁⁻¹ y₁ and φ − F₂ᵀ K₂⁻¹ y₂ with the same φ. As
    Cov(φ, y_b) = F_bᵀ, C is the diagonal of P − F₁ᵀ K₁⁻¹ F₁ − F₂ᵀ K₂⁻¹ F₂ + F₁ᵀ K₁⁻¹ k(t₁, t₂) K₂⁻¹ F₂.
    """
    priors = _weighted_sums(thetas, (kernel.prior_variance() for kernel in kernels))
    explained = [[part.half.square().sum(0) for part in game] for game in zip(*parts, strict=True)]
    if len(blocks) == 1:
        return [prior - by_block[0] for prior, by_block in zip(priors, explained, strict=True)]
    crosses = _weighted_sums(thetas, (kernel.gram(blocks[0].z, blocks[1].z) for kernel in kernels))
    found = []
    for prior, cross, by_block, *pair in zip(priors, crosses, explained, *parts[:2], strict=True):
        first, second = (torch.linalg.solve_triangular(part.lower.T, part.half, upper=True) for part in pair)
        shared = prior - by_block[0] - by_block[1] + (first * (cross @ second)).sum(0)
        own = prior - torch.stack(by_block).mean(0)
        found.append(shared + (own - shared) / len(blocks))
    return found
