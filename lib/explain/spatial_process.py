"""A Gaussian process on the odd part of a game, and the Shapley values that follow from it.

Only the odd part w(S) = (v(S) − v(Sᶜ)) / 2 of a game has Shapley values (the even part's cancel), so the
data are the odd values of coalitions S, which take a pair of evaluations each, and that of the full
coalition, w(N) = (v(N) − v(∅)) / 2, which is known exactly. Under the prior

    w ~ GP(0, Σ_k θ_k k_k),    observed with noise of variance θ_ε that stands for what no kernel explains,

the Shapley values, linear in w, are Gaussian given the data: with F the Shapley values of Σ_k θ_k k_k(·, t)
at the data t, φ = Fᵀ K⁻¹ y, and their covariance is the prior's less Fᵀ K⁻¹ F (Rasmussen & Williams 2006,
chapter 2). The hyper-parameters θ maximise the marginal likelihood; several games share them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain import variance_components
from lib.explain.kernels import Kernel

EXACT = 1e-8  # the share of the noise that w(N) has
# Of the marginal likelihood; 300 cost 5 to 27 times the error on some images.
ROWS_OF_LIKELIHOOD = 1024
# That are conditioned on at once, which takes time as their cube.
ROWS_AT_ONCE = 2048
USUAL_LOG_NOISE = -6.0  # where the search for θ_ε starts


class Posterior(NamedTuple):
    """Shapley values given the data.

    Attributes:
        values: (T, n) means.
        standard_errors: (T, n) standard deviations.
    """

    values: Tensor
    standard_errors: Tensor


class _Conditioned(NamedTuple):
    """What a block of m rows says: means (T, n); L⁻¹ F (m, n) and L (m, m), the Cholesky factor of K."""

    values: Tensor
    half: Tensor
    lower: Tensor


def shapley_posterior(
    kernels: Sequence[Kernel], coalitions: Tensor, odd_values: Tensor, full_odd_value: Tensor
) -> Posterior:
    """Return the Shapley values of T games, given their odd values at the same coalitions.

    Beyond 2,048 pairs the posteriors of blocks of no more than that are averaged.

    Args:
        kernels: the prior's.
        coalitions: (P, n) bool, one of each complementary pair, in random order.
        odd_values: w (P, T) float64.
        full_odd_value: w(N) (T,).
    """
    scale = torch.cat([full_odd_value[None], odd_values]).square().mean(0).sqrt()
    divisor = torch.where(scale > 0, scale, 1)
    z, y = 2.0 * coalitions.double() - 1, odd_values / divisor
    full = torch.ones_like(z[:1]), (full_odd_value / divisor)[None]
    rows = math.ceil(len(z) / math.ceil((len(z) + 1) / ROWS_AT_ONCE)) if len(z) else 1
    blocks = [
        (torch.cat([full[0], part]), torch.cat([full[1], values]))
        for part, values in zip(z.split(rows), y.split(rows), strict=True)
    ]
    log_theta, lower = _fitted(kernels, *blocks[0])
    theta = log_theta.exp()[:-1].tolist()
    parts = [_condition(kernels, theta, lower, *blocks[0])]
    for z, y in blocks[1:]:
        parts.append(_condition(kernels, theta, _factor(kernels, z, log_theta), z, y))
    prior = sum(weight * kernel.prior_variance() for weight, kernel in zip(theta, kernels, strict=True))
    variance = prior - parts[0].half.square().sum(0)
    if len(parts) > 1:
        shared = _shared_variance(kernels, theta, prior, blocks[:2], parts[:2])
        variance = shared + (variance - shared) / len(parts)
    values = torch.stack([part.values for part in parts]).mean(0)
    return Posterior(scale[:, None] * values, scale[:, None] * variance.clamp_min(0).sqrt())


def _noise(z: Tensor) -> Tensor:
    noise = torch.ones_like(z[:, 0])
    noise[0] = EXACT
    return noise


def _fitted(kernels: Sequence[Kernel], z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return log θ, the noise's last, and the Cholesky factor of K of all rows."""
    few = z[:ROWS_OF_LIKELIHOOD]
    grams = torch.stack([kernel.symmetric_gram(few) for kernel in kernels])
    start = torch.tensor([kernel.usual_log_weight for kernel in kernels] + [USUAL_LOG_NOISE]).double()
    found = variance_components.fit(grams, _noise(few), y[:ROWS_OF_LIKELIHOOD], start)
    lower = found.lower if len(few) == len(z) else _factor(kernels, z, found.log_theta)
    return found.log_theta, lower


def _factor(kernels: Sequence[Kernel], z: Tensor, log_theta: Tensor) -> Tensor:
    """Return the Cholesky factor of K, summed kernel by kernel: all at once take many times its memory."""
    total = variance_components.covariance(z.new_zeros(0, len(z), len(z)), _noise(z), log_theta[-1:])
    for kernel, weight in zip(kernels, log_theta.exp().tolist(), strict=False):
        total.add_(kernel.symmetric_gram(z), alpha=weight)
    return torch.linalg.cholesky(total)


def _condition(
    kernels: Sequence[Kernel], theta: Sequence[float], lower: Tensor, z: Tensor, y: Tensor
) -> _Conditioned:
    functional = sum(weight * kernel.shapley(z) for weight, kernel in zip(theta, kernels, strict=True))
    solved = torch.linalg.solve_triangular(lower, torch.cat([functional, y], dim=1), upper=False)
    half, whitened = solved.split([functional.shape[1], y.shape[1]], dim=1)
    return _Conditioned(whitened.T @ half, half, lower)


def _shared_variance(kernels, theta, prior: Tensor, blocks, parts) -> Tensor:
    """Return the covariance (n,) between what two blocks are off by, which averaging does not lessen.

    Each error is φ − Fᵀ K⁻¹ y, and all of them hold the same φ.
    """
    (first, _), (second, _) = blocks
    cross = sum(weight * kernel.gram(first, second) for weight, kernel in zip(theta, kernels, strict=True))
    weights = [torch.linalg.solve_triangular(part.lower.T, part.half, upper=True) for part in parts]
    common = (weights[0] * (cross @ weights[1])).sum(0)
    return prior - sum(part.half.square().sum(0) for part in parts) + common
