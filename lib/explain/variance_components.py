"""Hyper-parameters of a Gaussian process whose covariance is a weighted sum of given matrices.

The data y (m, T) have T independent columns with the same covariance

    K = Σ_k θ_k K_k + θ_ε diag(d) + 1e-10 I.

Up to a constant, the negative log marginal likelihood is ½ tr(yᵀ K⁻¹ y) + T/2 log|K|. With α = K⁻¹ y and
∂K/∂θ_k = K_k, its derivatives are

    gradient    ½ (T tr(K⁻¹ K_k) − tr(αᵀ K_k α))
    Hessian     tr(αᵀ K_k K⁻¹ K_l α) − T/2 tr(K⁻¹ K_k K⁻¹ K_l)

The second term of the Hessian needs products of matrices. Its expectation is minus half of that of the first
term, so the Hessian is near the “average information” ½ tr(αᵀ K_k K⁻¹ K_l α), which needs no further product
(Gilmour, Thompson & Cullis 1995, Biometrics 51). Newton's method with it takes about six steps where a method
without curvature takes forty.

With `Probes`, the traces of the gradient are estimated: tr(K⁻¹ K_k) is the mean of gᵀ K⁻¹ K_k g over random
vectors g of signs (Hutchinson 1989; Stein, Chen & Anitescu 2013, Annals of Applied Statistics 7). Its error
is 1/√P of the gradient's own standard deviation: with P = 32 vectors and K = 7, the search ends (K + 1) / 2P
= 0.1 nats from the maximum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

JITTER = 1e-10  # keeps K positive definite in spite of rounding
LOWEST, HIGHEST = -25.0, 8.0  # of log θ, for data of mean square 1
MOST_STEPS = 30
LONGEST_STEP = 2.0  # in log θ
# The search ends if the expected gain of a step is smaller, in nats per column of y. With 0.3 everywhere, the
# error was 4 % larger on games in which all of a few players are needed.
ENOUGH = 0.05
ROUGHLY = 0.3  # the same, where the result only starts another search, or where a step takes long
# After a step whose expected gain was less than so many times that, the search ends without looking further.
NEARLY = 3
# The search begins with half of the rows if these are at least so many. With 64, one search in eight ended in
# a lesser maximum, 5 to 10 nats below.
COARSEST_ROWS = 250
# Rows left out of a half. The columns of a matrix of 512 rows compete for the same lines of the cache: its
# factor takes twice as long as that of 508.
NOT_A_POWER = 4
# From so many rows on, traces are estimated: with 1,024 rows, in 10 ms instead of 45.
ROWS_TO_PROBE = 800
PROBES = 32
# Standard deviation of the prior of log θ. It is weak, and keeps θ of a part that the data do not determine
# near the prior mean.
PRIOR_DEVIATION = 4.0


class Fit(NamedTuple):
    """A point of the search: log θ (K + 1,), with log θ_ε last, the objective, the Cholesky factor of K."""

    log_theta: Tensor
    objective: float
    lower: Tensor


class Probes(NamedTuple):
    """Random vectors g (m, P) of signs, and their products K_k g (K + 1, m, P), that of diag(d) last."""

    vectors: Tensor
    products: Tensor


def probes(grams: Tensor, noise: Tensor) -> Probes:
    """Return the same vectors in every call, so that estimates are reproducible."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (len(noise), PROBES), generator=generator).double() * 2 - 1
    # The matrices are symmetric. This way round, and as one product, it takes a third of grams @ signs.
    products = (signs.T.contiguous() @ grams.flatten(0, 1).T).view(PROBES, len(grams), len(noise))
    return Probes(signs, torch.cat([products.permute(1, 2, 0), (noise[:, None] * signs)[None]]))


def covariance(grams: Tensor, noise: Tensor, log_theta: Tensor) -> Tensor:
    """Return K (m, m) from `grams` K_k (K, m, m), `noise` d (m,) and `log_theta` (K + 1,)."""
    theta = log_theta.exp()
    result = torch.tensordot(theta[:-1], grams, 1)
    result.diagonal().add_(theta[-1] * noise + JITTER)
    return result


def fit(grams: Tensor, noise: Tensor, y: Tensor, prior: Tensor) -> Fit:
    """Return the log θ of greatest posterior density that all columns share, found by a damped Newton method.

    Args:
        grams: K_k (K, m, m) float64.
        noise: d (m,).
        y: data (m, T), of mean square about 1.
        prior: mean of the prior of log θ (K + 1,), with log θ_ε last.
    """
    return _fit_groups(grams, noise, [y], prior, ENOUGH, probing=False)[0]


def fit_each(grams: Tensor, noise: Tensor, y: Tensor, prior: Tensor) -> list[Fit]:
    """Return the log θ of greatest posterior density of each column of `y`; arguments as for `fit`."""
    columns = list(y.split(1, dim=1))
    if len(y) < ROWS_TO_PROBE:
        return _fit_groups(grams, noise, columns, prior, ENOUGH, probing=False)
    return _fit_groups(grams, noise, columns, prior, ROUGHLY, probing=True)


def _fit_groups(
    grams: Tensor,
    noise: Tensor,
    groups: Sequence[Tensor],
    prior: Tensor,
    enough: float,
    *,
    probing: bool,
) -> list[Fit]:
    """Return the fit of each of `groups` (m, T) of columns; begin with half of the rows if there are many.

    A step with half of the rows costs an eighth. If `probing`, traces are estimated.
    """
    rows = len(noise) // 2 - NOT_A_POWER
    starts = [prior] * len(groups)
    if rows >= COARSEST_ROWS:
        half = grams[:, :rows, :rows].contiguous()
        coarse = _fit_groups(half, noise[:rows], [y[:rows] for y in groups], prior, ROUGHLY, probing=probing)
        starts = [found.log_theta for found in coarse]
    traced = probes(grams, noise) if probing else None
    return [
        _search(grams, noise, y, prior, start, enough, traced)
        for y, start in zip(groups, starts, strict=True)
    ]


def _search(
    grams: Tensor,
    noise: Tensor,
    y: Tensor,
    prior: Tensor,
    start: Tensor,
    enough: float,
    traced: Probes | None = None,
) -> Fit:
    """Return where the search from `start` ends, with no step that gains `enough` nats per column.

    With `traced`, the traces of the gradient are estimated; otherwise, they are computed exactly.
    """
    enough, damping = enough * y.shape[1], 1e-3
    point = _evaluate(grams, noise, y, prior, start)
    gradient, curvature = _derivatives(grams, noise, y, prior, point, traced)
    for _ in range(MOST_STEPS):
        # The Hessian with respect to log θ has the gradient as a further term on its diagonal, which the
        # average information lacks. Adding its absolute value keeps θ of an unimportant part from
        # oscillating. Adding the gradient itself ended 50 nats above the minimum.
        damped = curvature + torch.diag(gradient.abs() + damping * curvature.diagonal())
        step = -torch.linalg.solve(damped, gradient).clamp(-LONGEST_STEP, LONGEST_STEP)
        # Only the step within the bounds has a gain. Without noise, the search ends at the lowest log θ_ε,
        # and used to try a dozen further steps there because of what lies beyond.
        step = (point.log_theta + step).clamp(LOWEST, HIGHEST) - point.log_theta
        gain = -float(gradient @ step + 0.5 * step @ curvature @ step)
        if gain < enough:
            break
        candidate = _evaluate(grams, noise, y, prior, point.log_theta + step)
        if candidate.objective < point.objective:
            point, damping = candidate, max(damping / 5, 1e-4)
            if gain < NEARLY * enough:
                break
            gradient, curvature = _derivatives(grams, noise, y, prior, point, traced)
        else:
            damping = 10 * max(damping, 0.01)
    return point


def _evaluate(grams: Tensor, noise: Tensor, y: Tensor, prior: Tensor, log_theta: Tensor) -> Fit:
    """Return the point at `log_theta`; its objective is infinite if K is not positive definite."""
    lower, failed = torch.linalg.cholesky_ex(covariance(grams, noise, log_theta))
    if failed:
        return Fit(log_theta, float("inf"), lower)
    whitened = torch.linalg.solve_triangular(lower, y, upper=False)
    misfit = 0.5 * whitened.square().sum() + y.shape[1] * lower.diagonal().log().sum()
    surprise = 0.5 * ((log_theta - prior) / PRIOR_DEVIATION).square().sum()
    return Fit(log_theta, float(misfit + surprise), lower)


def _derivatives(
    grams: Tensor, noise: Tensor, y: Tensor, prior: Tensor, point: Fit, traced: Probes | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradient (K + 1,) and the curvature (K + 1, K + 1) of the objective in log θ = u.

    ∂/∂u = θ ∂/∂θ. The prior adds its gradient (u − prior) / s² and its curvature 1 / s².
    """
    if traced:
        both = torch.cholesky_solve(torch.cat([y, traced.vectors], dim=1), point.lower)
        alpha, solved = both[:, : y.shape[1]], both[:, y.shape[1] :]
        traces = traced.products.flatten(1) @ solved.flatten() / solved.shape[1]
    else:
        inverse = torch.cholesky_inverse(point.lower)
        alpha = inverse @ y
        traces = torch.cat([grams.flatten(1) @ inverse.flatten(), (inverse.diagonal() @ noise)[None]])
    theta = point.log_theta.exp()
    parts = torch.cat([grams @ alpha, (noise[:, None] * alpha)[None]])  # K_k α, (K + 1, m, T)
    gradient = 0.5 * theta * (y.shape[1] * traces - torch.einsum("mt,kmt->k", alpha, parts))
    whitened = torch.linalg.solve_triangular(point.lower, parts.transpose(0, 1).flatten(1), upper=False).view(
        len(y), len(theta), -1
    )
    information = 0.5 * torch.einsum("mkt,mlt->kl", whitened, whitened)
    curvature = theta[:, None] * theta * information
    precision = PRIOR_DEVIATION**-2
    return (
        gradient + precision * (point.log_theta - prior),
        curvature + precision * torch.eye(len(theta), dtype=theta.dtype),
    )
