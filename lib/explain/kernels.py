"""Covariances of functions of coalitions, and what Shapley values do to them, in closed form.

A coalition of n players is here z ∈ {−1, +1}ⁿ (+1 present), as float64. Every function of coalitions is a
sum of coefficients times monomials Π_{a∈A} z_a. A kernel says which coefficients are likely to be large:
k(s, t) = Σ_A λ_A Π_{a∈A} s_a t_a is the covariance of a function whose coefficients are independent with
variances λ_A.

All kernels here hold odd monomials alone (|A| = 1, 3, 5, …), for which z → Π_{a∈A} z_a rises from −1 at
the empty coalition to +1 at the full one: by symmetry each of the members of A has the Shapley value
2 / |A|, all others 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# Weights below it are left out of a product: each centre then has a dozen neighbours and not n.
NEGLIGIBLE_WEIGHT = 1e-2
# Exact for monomials of up to 96 players, and to rounding far beyond, where powers of ζ are smooth.
MOST_NODES = 48
ROWS_AT_ONCE = 128
POINTS_AT_ONCE = 16


@dataclass(frozen=True)
class Linear:
    """k(s, t) = sᵀ C t / n: one coefficient a player, with covariance C / n.

    Attributes:
        covariance: C (n, n), with ones on its diagonal.
        usual_log_weight: log θ of the kernel in games of images, where a search for it may start.
    """

    covariance: Tensor
    usual_log_weight: float = -3.0

    def gram(self, s: Tensor, t: Tensor) -> Tensor:
        """Return k of every row of `s` (S, n) with every row of `t` (T, n), (S, T)."""
        return s @ (self.covariance / len(self.covariance)) @ t.T

    def symmetric_gram(self, z: Tensor) -> Tensor:
        return self.gram(z, z)

    def shapley(self, t: Tensor) -> Tensor:
        """Return the Shapley values of s → k(s, t) for every row of `t` (T, n), (T, n)."""
        return 2 * t @ self.covariance / len(self.covariance)

    def prior_variance(self) -> Tensor:
        """Return the variance of each player's Shapley value, (n,)."""
        return 4 * self.covariance.diagonal() / len(self.covariance)


@dataclass(frozen=True)
class Products:
    """k(s, t) = Σ_j Σ_{A odd} Π_{a∈A} g_ja s_a t_a / N: all odd interactions, each within a neighbourhood.

    With u = s ∘ t, the sum over all subsets is Π_a (1 + g_a u_a), and the odd ones are half its difference
    to Π_a (1 − g_a u_a). As u_a = ±1 and with b = atanh g, 1 + g_a u_a = √(1 − g_a²) exp(b_a u_a), so that

        k(s, t) = Σ_j c_j sinh(Σ_a b_ja s_a t_a) / N,    c_j = Π_a √(1 − g_ja²),

    where N makes k(s, s) = 1.

    Shapley values: player i has 2 / |A| in each A that holds it, and 1 / |A| = ∫₀¹ ζ^(|A|−1) dζ. The
    integrand is a product again, over all players but i, of even order in them:

        φ_i k(·, t) = ∫₀¹ Σ_j g_ji t_i [ P⁺_j / (1 + ζ g_ji t_i) + P⁻_j / (1 − ζ g_ji t_i) ] dζ / N,
        P±_j = Π_a (1 ± ζ g_ja t_a).

    As t_i² = 1, 1 / (1 ± x t_i) = (1 ∓ x t_i) / (1 − x²), which makes the sum over j two matrix products.
    Gauss–Legendre quadrature with q nodes is exact, for it is a polynomial of degree below 2 q.

    Attributes:
        weights: g (J, n), in [0, 1): a row a neighbourhood.
        usual_log_weight: as for `Linear`.
    """

    weights: Tensor
    usual_log_weight: float = -4.0

    @cached_property
    def _norm(self) -> float:
        return float((_cosines(self.weights) * torch.sinh(torch.atanh(self.weights).sum(1))).sum())

    def gram(self, s: Tensor, t: Tensor) -> Tensor:
        """As for `Linear`."""
        result = s.new_zeros(len(s), len(t))
        for left, right, cosine in exponents(self.weights, s, t):
            _add_sinh(result, left @ right, cosine / self._norm)
        return result

    def symmetric_gram(self, z: Tensor) -> Tensor:
        """Return `gram(z, z)` at half its cost: the lower triangle is computed, the upper one mirrored."""
        result = z.new_zeros(len(z), len(z))
        # Few rows at once, for what a centre adds to them to stay in the cache.
        blocks = [(start, min(start + ROWS_AT_ONCE, len(z))) for start in range(0, len(z), ROWS_AT_ONCE)]
        for left, right, cosine in exponents(self.weights, z, z):
            for start, stop in blocks:
                exponent = left[start:stop] @ right[:, :stop]
                _add_sinh(result[start:stop, :stop], exponent, cosine / self._norm)
        for start, stop in blocks:
            result[:start, start:stop] = result[start:stop, :start].T
        return result

    def shapley(self, t: Tensor) -> Tensor:
        """As for `Linear`."""
        result = torch.zeros_like(t)
        for zeta, share in quadrature(self.weights):
            plus, minus = subset_products(zeta * self.weights, t)
            scaled = self.weights / (1 - (zeta * self.weights).square())
            result.add_((plus + minus) @ scaled, alpha=share)
            result.sub_(t * ((plus - minus) @ (scaled * self.weights)), alpha=share * zeta)
        return t * result / self._norm

    def prior_variance(self) -> Tensor:
        """As for `Linear`: Σ_A (2 / |A|)² λ_A, with 1 / |A|² = ∫∫ (ζη)^(|A|−1) dζ dη."""
        zeta, share = torch.tensor(quadrature(self.weights), dtype=torch.float64).T
        first, second = torch.triu_indices(len(zeta), len(zeta))  # the integrand is the same in ζ and η
        points = zeta[first] * zeta[second]
        shares = share[first] * share[second] * torch.where(first == second, 2, 4)
        result = torch.zeros_like(self.weights[0])
        for part, its_shares in zip(points.split(POINTS_AT_ONCE), shares.split(POINTS_AT_ONCE), strict=True):
            scaled = part[:, None, None] * self.weights  # (points, J, n)
            plus = torch.log1p(scaled).sum(-1, keepdim=True).exp() / (1 + scaled)
            minus = torch.log1p(-scaled).sum(-1, keepdim=True).exp() / (1 - scaled)
            result += torch.einsum("q,jn,qjn->n", its_shares, self.weights, plus + minus)
        return result / self._norm


def quadrature(weights: Tensor) -> list[tuple[float, float]]:
    """Return Gauss–Legendre nodes on (0, 1) and their weights, for products over neighbourhoods (J, n)."""
    order = int((weights > 0).sum(1).max())
    nodes, shares = np.polynomial.legendre.leggauss(min(math.ceil(order / 2), MOST_NODES))
    return list(zip((nodes + 1) / 2, shares / 2, strict=True))


def exponents(weights: Tensor, s: Tensor, t: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield, for each neighbourhood j, (S, a) and (a, T) whose product is Σ_a b_ja s_a t_a, and c_j."""
    for exponent, cosine in zip(torch.atanh(weights), _cosines(weights).tolist(), strict=True):
        near = exponent.nonzero().flatten()
        yield s[:, near] * exponent[near], t[:, near].T.contiguous(), cosine


def _cosines(weights: Tensor) -> Tensor:
    """c_j, (J,)."""
    return torch.exp(0.5 * torch.log1p(-weights.square()).sum(1))


def subset_products(weights: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return Π_a (1 + g_ja t_a) and Π_a (1 − g_ja t_a), both (T, J), for weights (J, n) and t (T, n)."""
    mean = 0.5 * torch.log1p(-weights.square()).sum(1)
    half = t @ torch.atanh(weights).T
    return torch.exp(mean + half), torch.exp(mean - half)


def _add_sinh(total: Tensor, exponent: Tensor, factor: float) -> None:
    """Add factor · sinh(exponent) to `total`, in place; a fifth faster than `torch.sinh`."""
    growth = exponent.exp_()
    total.add_(growth, alpha=factor / 2).addcdiv_(total.new_ones(()), growth, value=-factor / 2)


Kernel = Linear | Products


def spatial_kernels(positions: Tensor) -> list[Kernel]:
    """Return the kernels of a function of image patches: what is near acts together.

    Args:
        positions: (n, 2) float64, of the patches' centres, in units of their mean spacing.
    """
    near = near_weights(positions)
    everywhere = torch.ones_like(positions[:, 0])[None]
    return [
        Linear(torch.eye(len(positions), dtype=torch.float64)),
        Linear(torch.exp(-_squared_distances(positions) / 2)),
        Products(0.3 * near, -4.5),
        Products(0.8 * near, -3.0),
        Products(0.05 * everywhere, -4.0),
        Products(0.2 * everywhere, -5.0),
        Products(0.5 * everywhere, -6.0),
    ]


def near_weights(positions: Tensor) -> Tensor:
    """Return exp(−d²) of the distance between any two players (n, 2), (n, n); 0 where that is negligible."""
    near = torch.exp(-_squared_distances(positions))
    return torch.where(near < NEGLIGIBLE_WEIGHT, 0, near)


def _squared_distances(positions: Tensor) -> Tensor:
    return (positions[:, None] - positions).square().sum(-1)
