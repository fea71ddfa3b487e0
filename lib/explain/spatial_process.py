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
hyper-parameters θ maximise the posterior density of log θ given y (see `variance_components`); several games
share them.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain import variance_components
from lib.explain.kernels import Kernel

EXACT = 1e-8  # noise variance of w(N), as a share of θ_ε
# The most rows of y in the marginal likelihood. With 300, the error was 5 to 27 times larger on some images.
ROWS_OF_LIKELIHOOD = 1024
# The most rows of y in one block; the time to condition on a block is cubic in its rows.
ROWS_AT_ONCE = 2048
USUAL_LOG_NOISE = -6.0  # where the search for θ_ε starts


class Posterior(NamedTuple):
    """Posterior of the Shapley values.

    Attributes:
        values: posterior means (T, n).
        standard_errors: posterior standard deviations (T, n).
    """

    values: Tensor
    standard_errors: Tensor


class _Conditioned(NamedTuple):
    """Posterior from a block of m rows: means (T, n), L⁻¹ F (m, n), and the Cholesky factor L of K (m, m)."""

    values: Tensor
    half: Tensor
    lower: Tensor


def shapley_posterior(
    kernels: Sequence[Kernel], coalitions: Tensor, odd_values: Tensor, full_odd_value: Tensor
) -> Posterior:
    """Return the Shapley values of T games, given their odd values at the same coalitions.

    More than 2,048 rows are divided into blocks, and the posteriors of the blocks are averaged.

    Args:
        kernels: kernels of the prior.
        coalitions: one of each complementary pair (P, n) bool, in random order.
        odd_values: w of these coalitions (P, T) float64.
        full_odd_value: w(N) (T,).
    """
    # Each game is scaled to mean square 1, so that the games can share θ.
    scale = torch.cat([full_odd_value[None], odd_values]).square().mean(0).sqrt()
    divisor = torch.where(scale > 0, scale, 1)
    z, y = 2.0 * coalitions.double() - 1, odd_values / divisor
    # Every block begins with the full coalition, whose value is known exactly.
    full = torch.ones_like(z[:1]), (full_odd_value / divisor)[None]
    rows = math.ceil(len(z) / math.ceil((len(z) + 1) / ROWS_AT_ONCE)) if len(z) else 1
    blocks = [
        (torch.cat([full[0], part]), torch.cat([full[1], values]))
        for part, values in zip(z.split(rows), y.split(rows), strict=True)
    ]
    log_theta, lower = _fitted(kernels, *blocks[0])  # θ of the first block serves for all
    theta = log_theta.exp()[:-1].tolist()
    parts = [_condition(kernels, theta, lower, *blocks[0])]
    for z, y in blocks[1:]:
        parts.append(_condition(kernels, theta, _factor(kernels, z, log_theta), z, y))
    prior = _weighted_sum(theta, (kernel.prior_variance() for kernel in kernels))
    variance = prior - parts[0].half.square().sum(0)
    if len(parts) > 1:
        # The mean of B errors with variance V and covariance C of any two has the variance C + (V − C) / B.
        shared = _shared_variance(kernels, theta, prior, blocks[:2], parts[:2])
        variance = shared + (variance - shared) / len(parts)
    values = torch.stack([part.values for part in parts]).mean(0)
    return Posterior(scale[:, None] * values, scale[:, None] * variance.clamp_min(0).sqrt())


def _weighted_sum(theta: Sequence[float], parts: Iterable[Tensor]) -> Tensor:
    """Return Σ_j θ_j part_j."""
    products = (weight * part for weight, part in zip(theta, parts, strict=True))
    return sum(products, start=torch.zeros((), dtype=torch.float64))


def _noise(z: Tensor) -> Tensor:
    """Return the diagonal (m,) of the noise's covariance, divided by θ_ε; the first row is w(N)."""
    noise = torch.ones_like(z[:, 0])
    noise[0] = EXACT
    return noise


def _fitted(kernels: Sequence[Kernel], z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return log θ, with log θ_ε last, and the Cholesky factor of K for all rows."""
    few = z[:ROWS_OF_LIKELIHOOD]
    grams = torch.stack([kernel.symmetric_gram(few) for kernel in kernels])
    start = torch.tensor([kernel.usual_log_weight for kernel in kernels] + [USUAL_LOG_NOISE]).double()
    found = variance_components.fit(grams, _noise(few), y[:ROWS_OF_LIKELIHOOD], start)
    lower = found.lower if len(few) == len(z) else _factor(kernels, z, found.log_theta)
    return found.log_theta, lower


def _factor(kernels: Sequence[Kernel], z: Tensor, log_theta: Tensor) -> Tensor:
    """Return the Cholesky factor of K.

    The kernels are added one by one, because all of them together take many times the memory of K.
    """
    total = variance_components.covariance(z.new_zeros(0, len(z), len(z)), _noise(z), log_theta[-1:])
    for kernel, weight in zip(kernels, log_theta.exp().tolist(), strict=False):
        total.add_(kernel.symmetric_gram(z), alpha=weight)
    return torch.linalg.cholesky(total)


def _condition(
    kernels: Sequence[Kernel], theta: Sequence[float], lower: Tensor, z: Tensor, y: Tensor
) -> _Conditioned:
    """Return the posterior given y (m, T) at the rows z (m, n), with the Cholesky factor `lower` of K."""
    functional = _weighted_sum(theta, (kernel.shapley(z) for kernel in kernels))  # F (m, n)
    solved = torch.linalg.solve_triangular(lower, torch.cat([functional, y], dim=1), upper=False)
    half, whitened = solved.split([functional.shape[1], y.shape[1]], dim=1)
    return _Conditioned(whitened.T @ half, half, lower)


def _shared_variance(
    kernels: Sequence[Kernel],
    theta: Sequence[float],
    prior: Tensor,
    blocks: Sequence[tuple[Tensor, Tensor]],
    parts: Sequence[_Conditioned],
) -> Tensor:
    """Return the covariance (n,) of the errors of two blocks, which averaging does not reduce.

    The errors are φ − F₁ᵀ K₁⁻¹ y₁ and φ − F₂ᵀ K₂⁻¹ y₂ with the same φ. As Cov(φ, y_b) = F_bᵀ, the diagonal of
    their covariance is that of P − F₁ᵀ K₁⁻¹ F₁ − F₂ᵀ K₂⁻¹ F₂ + F₁ᵀ K₁⁻¹ k(t₁, t₂) K₂⁻¹ F₂.
    """
    (first, _), (second, _) = blocks
    cross = _weighted_sum(theta, (kernel.gram(first, second) for kernel in kernels))
    weights = [torch.linalg.solve_triangular(part.lower.T, part.half, upper=True) for part in parts]
    common = (weights[0] * (cross @ weights[1])).sum(0)
    return prior - torch.stack([part.half.square().sum(0) for part in parts]).sum(0) + common
