"""Kernels (prior covariances) of functions of coalitions, and the Shapley values of kernels in closed form.

Here a coalition of n players is z ∈ {−1, +1}ⁿ (+1 for a present player), as float64. Every function of
coalitions is a linear combination of the monomials Π_{a∈A} z_a over the subsets A of players. A kernel says
which coefficients are likely to be large: k(s, t) = Σ_A λ_A Π_{a∈A} s_a t_a is the covariance of a function
with independent coefficients of variance λ_A.

All kernels here have only odd monomials (|A| = 1, 3, 5, …). Such a monomial is −1 at the empty coalition and
+1 at the full one. By symmetry, each player in A has the Shapley value 2 / |A|; all other players have 0.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# Smaller weights are set to 0, so that each player has about a dozen neighbours instead of n.
NEGLIGIBLE_WEIGHT = 1e-2
# Gauss–Legendre nodes: exact for monomials of up to 96 players, and with errors in the range of rounding far
# beyond, because the integrand is smooth.
MOST_NODES = 48
ROWS_AT_ONCE = 128
# Neighbourhoods of at most so many players are read from a table of 2¹⁴ numbers, which fits into the cache.
# On a grid, the largest has 13.
TABLE_PLAYERS = 14
POINTS_AT_ONCE = 16


@dataclass(frozen=True)
class Linear:
    """k(s, t) = sᵀ C t / n, the kernel of linear functions whose coefficients have the covariance C / n.

    Attributes:
        covariance: C (n, n), with ones on its diagonal.
        usual_log_weight: usual log θ of the kernel in games of images, where the search for θ starts.
    """

    covariance: Tensor
    usual_log_weight: float = -3.0

    def gram(self, s: Tensor, t: Tensor) -> Tensor:
        """Return k of every row of `s` (S, n) with every row of `t` (T, n), (S, T)."""
        return s @ (self.covariance / len(self.covariance)) @ t.T

    def symmetric_gram(self, z: Tensor) -> Tensor:
        """Return `gram(z, z)`."""
        return self.gram(z, z)

    def shapley(self, t: Tensor) -> Tensor:
        """Return the Shapley values (T, n) of the functions s → k(s, t), for every row of `t` (T, n)."""
        return 2 * t @ self.covariance / len(self.covariance)

    def prior_variance(self) -> Tensor:
        """Return the prior variance (n,) of each player's Shapley value."""
        return 4 * self.covariance.diagonal() / len(self.covariance)


@dataclass(frozen=True)
class Products:
    """k(s, t) = Σ_j Σ_{A odd} Π_{a∈A} g_ja s_a t_a / N: all odd interactions within neighbourhoods j.

    Closed form: With u = s ∘ t, the sum over all subsets A is Π_a (1 + g_a u_a). The sum over the odd ones is
    half of its difference to Π_a (1 − g_a u_a). With b = atanh g, and because u_a = ±1, each factor is
    1 + g_a u_a = √(1 − g_a²) exp(b_a u_a). So

        k(s, t) = Σ_j c_j sinh(Σ_a b_ja s_a t_a) / N,    c_j = Π_a √(1 − g_ja²),

    where N makes k(s, s) = 1.

    Shapley values: Player i has 2 / |A| in each monomial over an A with i, and 1 / |A| = ∫₀¹ ζ^(|A|−1) dζ.
    For a given ζ, the sum over the odd A with i is g_ji t_i times the sum over even subsets of the other
    players, which is half of the sum of two products:

        φ_i k(·, t) = ∫₀¹ Σ_j g_ji t_i [ P⁺_j / (1 + ζ g_ji t_i) + P⁻_j / (1 − ζ g_ji t_i) ] dζ / N,
        P±_j = Π_a (1 ± ζ g_ja t_a).

    As t_i² = 1, 1 / (1 ± x t_i) = (1 ∓ x t_i) / (1 − x²), which makes the sum over j two matrix products. The
    integrand is a polynomial in ζ of degree below 2 q, so Gauss–Legendre quadrature with q nodes is exact.

    Attributes:
        weights: g (J, n), in [0, 1), one row per neighbourhood.
        usual_log_weight: as for `Linear`.
    """

    weights: Tensor
    usual_log_weight: float = -4.0

    @cached_property
    def _norm(self) -> float:
        return float((_cosines(self.weights) * torch.sinh(torch.atanh(self.weights).sum(1))).sum())

    def gram(self, s: Tensor, t: Tensor) -> Tensor:
        """Return k of every row of `s` (S, n) with every row of `t` (T, n), (S, T)."""
        result = s.new_zeros(len(s), len(t))
        for left, right, cosine in exponents(self.weights, s, t):
            _add_sinh(result, left @ right, cosine / self._norm)
        return result

    def symmetric_gram(self, z: Tensor) -> Tensor:
        """Return `gram(z, z)` at half the cost: the lower triangle is computed and then mirrored."""
        result = z.new_zeros(len(z), len(z))
        # Few rows at once, so that they stay in the cache while all neighbourhoods are added.
        blocks = [(start, min(start + ROWS_AT_ONCE, len(z))) for start in range(0, len(z), ROWS_AT_ONCE)]
        is_small = ((self.weights > 0).sum(1) <= TABLE_PLAYERS) & (len(z) ** 2 > 2**TABLE_PLAYERS)
        if is_small.any():
            _add_from_tables(result, blocks, list(_tables(self.weights[is_small], z)), 1 / self._norm)
        for left, right, cosine in exponents(self.weights[~is_small], z, z):
            for start, stop in blocks:
                exponent = left[start:stop] @ right[:, :stop]
                _add_sinh(result[start:stop, :stop], exponent, cosine / self._norm)
        for start, stop in blocks:
            result[:start, start:stop] = result[start:stop, :start].T
        return result

    def shapley(self, t: Tensor) -> Tensor:
        """Return the Shapley values (T, n) of the functions s → k(s, t), for every row of `t` (T, n)."""
        same, times_t = torch.zeros_like(t), torch.zeros_like(t)
        for zeta, share in quadrature(self.weights):
            plus, minus = subset_products(zeta * self.weights, t)
            scaled = self.weights / (1 - (zeta * self.weights).square())
            same.addmm_(plus + minus, scaled, alpha=share)
            times_t.addmm_(plus - minus, scaled * self.weights, alpha=share * zeta)
        return t * (same - t * times_t) / self._norm

    def prior_variance(self) -> Tensor:
        """Return the prior variance (n,) of each player's Shapley value.

        It is Σ_A (2 / |A|)² λ_A over the odd A with that player, with 1 / |A|² = ∫∫ (ζη)^(|A|−1) dζ dη.
        """
        zeta, share = torch.tensor(quadrature(self.weights), dtype=torch.float64).T
        first, second = torch.triu_indices(len(zeta), len(zeta))  # the integrand is symmetric
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
    """Return Gauss–Legendre nodes on (0, 1) and their weights, for the neighbourhoods in `weights` (J, n)."""
    order = int((weights > 0).sum(1).max())
    nodes, shares = np.polynomial.legendre.leggauss(min(math.ceil(order / 2), MOST_NODES))
    return list(zip((nodes + 1) / 2, shares / 2, strict=True))


def exponents(weights: Tensor, s: Tensor, t: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield, for each neighbourhood j, (S, a) and (a, T) whose product is Σ_a b_ja s_a t_a, and c_j."""
    for exponent, cosine in zip(torch.atanh(weights), _cosines(weights).tolist(), strict=True):
        near = exponent.nonzero().flatten()
        yield s[:, near] * exponent[near], t[:, near].T.contiguous(), cosine


def _tables(weights: Tensor, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each neighbourhood j of few players, codes (S,) int32 of the rows `z` (S, n), and a table.

    Bit a of a code is set if neighbour a is present. c_j sinh(Σ_a b_ja s_a t_a) depends only on the
    neighbours in which s and t differ: it is entry code(s) XOR code(t) of the table. A look-up takes 0.9 ns;
    the product of matrices and the exponential take 3.0 ns.
    """
    present = (z > 0).double()
    for exponent, cosine in zip(torch.atanh(weights), _cosines(weights).tolist(), strict=True):
        near = exponent.nonzero().flatten()
        table = z.new_zeros(1)
        for weight in exponent[
            near
        ]:  # the entries in which the next neighbour is alike, then those in which not
            table = torch.cat([table + weight, table - weight])
        codes = (present[:, near] @ 2.0 ** torch.arange(len(near)).double()).int()
        yield codes, torch.sinh(table).mul_(cosine)


def _add_from_tables(
    result: Tensor, blocks: Sequence[tuple[int, int]], tables: Sequence[tuple[Tensor, Tensor]], factor: float
) -> None:
    """Add factor · table[code(s) XOR code(t)] of all `tables` to the lower triangle of `result`, in place.

    A block is added up by itself, and in memory that is kept, which is 14 % faster than adding to `result`.
    """
    for start, stop in blocks:
        total = result.new_zeros(stop - start, stop)
        found, differing = torch.empty_like(total), torch.empty_like(total, dtype=torch.int32)
        for codes, table in tables:
            torch.bitwise_xor(codes[start:stop, None], codes[:stop], out=differing)
            torch.index_select(table, 0, differing.flatten(), out=found.view(-1))
            total.add_(found)
        result[start:stop, :stop].add_(total, alpha=factor)


def _cosines(weights: Tensor) -> Tensor:
    """Return c_j = Π_a √(1 − g_ja²), (J,), for weights g (J, n)."""
    return torch.exp(0.5 * torch.log1p(-weights.square()).sum(1))


def subset_products(weights: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return Π_a (1 + g_ja t_a) and Π_a (1 − g_ja t_a), both (T, J), for weights g (J, n) and t (T, n)."""
    mean = 0.5 * torch.log1p(-weights.square()).sum(1)
    half = t @ torch.atanh(weights).T
    return torch.exp(mean + half), torch.exp(mean - half)


def _add_sinh(total: Tensor, exponent: Tensor, factor: float) -> None:
    """Add factor · sinh(exponent) to `total`, in place, 20 % faster than with `torch.sinh`.

    sinh x = (eˣ − 1/eˣ) / 2 needs one exponential. `exponent` is overwritten.
    """
    growth = exponent.exp_()
    total.add_(growth, alpha=factor / 2).addcdiv_(total.new_ones(()), growth, value=-factor / 2)


Kernel = Linear | Products


def spatial_kernels(positions: Tensor) -> list[Kernel]:
    """Return kernels for the odd part of a game of image patches; by most of them, near patches act together.

    Args:
        positions: centres of the patches (n, 2) float64, in units of their mean spacing.
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
    """Return exp(−d²) for the distances d between players at `positions` (n, 2), (n, n); 0 if negligible."""
    near = torch.exp(-_squared_distances(positions))
    return torch.where(near < NEGLIGIBLE_WEIGHT, 0, near)


def _squared_distances(positions: Tensor) -> Tensor:
    return (positions[:, None] - positions).square().sum(-1)
