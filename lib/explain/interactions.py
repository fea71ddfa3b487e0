"""Pairwise Shapley interactions of a game (Grabisch & Roubens 1999), exact or estimated.

I_ij is the mean of v(S ∪ ij) − v(S ∪ i) − v(S ∪ j) + v(S) over coalitions S of the other players, in which
all sizes have equal weight. It is positive if two players contribute more together than the sum of what they
contribute alone, and negative if their contributions overlap.

Only the even part u(S) = (v(S) + v(Sᶜ)) / 2 of a game has interactions of pairs; those of the odd part
cancel, because replacing S by its complement among the others changes the sign of the second difference. The
complementary pairs that Shapley values are estimated from give u without further evaluations.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lib.explain import variance_components
from lib.explain.kernels import exponents, near_weights, quadrature, subset_products
from lib.explain.spatial_process import EXACT, ROWS_AT_ONCE, ROWS_OF_LIKELIHOOD

# Weight g of a player in kernels of second order. The prior variance of a monomial is ∝ Π g, a million times
# larger for two players than for four.
SECOND_ORDER = 1e-3


@dataclass(frozen=True)
class EvenProducts:
    """k(s, t) = Σ_j Σ_{A even, not ∅} Π_{a∈A} g_ja s_a t_a / N = Σ_j (c_j cosh(Σ_a b_ja s_a t_a) − 1) / N.

    This is the even counterpart of `lib.explain.kernels.Products`, with c and b as there; N normalises k(s,
    s) to 1.

    In the monomial over A, any two of its players i and j have the interaction 4 / (|A| − 1). Derivation: z_i
    and z_j are ±1, so the second difference is 4 times the monomial over the other |A| − 2 players. If each
    of them is present with probability q, that monomial has the mean (2q − 1)^(|A|−2), and q is uniform on
    [0, 1]. As |A| is even, ∫₀¹ (2q − 1)^(|A|−2) dq = 1 / (|A| − 1) = ∫₀¹ ζ^(|A|−2) dζ.

    Attributes:
        weights: g (J, n), in [0, 1), one row per neighbourhood.
    """

    weights: Tensor

    @cached_property
    def _norm(self) -> float:
        everyone = torch.ones_like(self.weights[:1])
        return float(self._sum(everyone, everyone))

    def _sum(self, s: Tensor, t: Tensor) -> Tensor:
        """Return N · k of every row of `s` (S, n) with every row of `t` (T, n), (S, T)."""
        result = s.new_zeros(len(s), len(t))
        for left, right, cosine in exponents(self.weights, s, t):
            result.add_(torch.cosh(left @ right).mul_(cosine).sub_(1))
        return result

    def gram(self, s: Tensor, t: Tensor) -> Tensor:
        """Return k of every row of `s` (S, n) with every row of `t` (T, n), (S, T)."""
        return self._sum(s, t) / self._norm

    def interactions(self, t: Tensor, alpha: Tensor) -> Tensor:
        """Return the interactions (T, n, n) of the functions s → Σ_m alpha_mt k(s, t_m), for alpha (M, T).

        The sum over all even A with i and j is half of the sum over both signs of the products over the other
        players. Such a product is P±, the one over all players, divided by the factors of i and j. With the
        neighbourhoods numbered by r, the interaction of i and j in s → k(s, t) is

            4 · ½ · ∫₀¹ Σ_r Σ_± P±_r · g_ri t_i / (1 ± ζ g_ri t_i) · g_rj t_j / (1 ± ζ g_rj t_j) dζ / N,
            P±_r = Π_a (1 ± ζ g_ra t_a).
        """
        n = t.shape[1]
        result = t.new_zeros(alpha.shape[1], n, n)
        for zeta, share in quadrature(self.weights):
            for sign, products in zip((1, -1), subset_products(zeta * self.weights, t), strict=True):
                for row, product in zip(self.weights, products.T, strict=True):
                    near = row.nonzero().flatten()
                    own = t[:, near] * row[near]
                    own = own / (1 + sign * zeta * own)
                    weighted = own.T * (alpha * product[:, None]).T[:, None]  # (T, a, M)
                    result[:, near[:, None], near] += 2 * share * (weighted @ own)
        diagonal = torch.eye(n, dtype=torch.bool)
        return result.masked_fill(diagonal, 0) / self._norm


def even_kernels(positions: Tensor) -> list[EvenProducts]:
    """Return kernels for the even part of a game of image patches at `positions` (n, 2)."""
    everywhere = torch.ones_like(positions[:, 0])[None]
    near = near_weights(positions)
    scales = (SECOND_ORDER, 0.05, 0.2, 0.5)
    return [
        *(EvenProducts(scale * everywhere) for scale in scales),
        *(EvenProducts(scale * near) for scale in (SECOND_ORDER, 0.3, 0.8)),
    ]


def estimate(coalitions: Tensor, outcomes: Tensor, positions: Tensor) -> Tensor:
    """Return the interactions (T, n, n) of T games, estimated from evaluations of complementary pairs.

    The even part is a Gaussian process with the kernels above and a constant; the interactions, which are
    linear in it, have the posterior mean Σ_m α_m I(k(·, t_m)) with α = K⁻¹ y (see
    `lib.explain.spatial_process`).

    Args:
        coalitions, outcomes: (S, n) and (S, T), as in `lib.explain.shapley.Estimate`; the empty and the full
            coalition are among them.
        positions: (n, 2), as in `lib.explain.shapley.odd_gp`.
    """
    first, second = _complements(coalitions)[:ROWS_AT_ONCE].T
    even = (outcomes[first] + outcomes[second]) / 2
    z = 2.0 * coalitions[first].double() - 1
    mean, scale = even.mean(0), even.std(0, correction=0)
    y = (even - mean) / torch.where(scale > 0, scale, 1)
    kernels = even_kernels(positions)
    noise = torch.ones_like(y[:, 0])
    noise[0] = EXACT  # the pair of the full and the empty coalition
    grams = torch.stack([kernel.gram(z, z) for kernel in kernels] + [torch.ones(len(z), len(z)).double()])
    few = slice(ROWS_OF_LIKELIHOOD)
    start = torch.tensor([-3.0] * len(grams) + [-4.0]).double()
    log_theta = variance_components.fit(grams[:, few, few], noise[few], y[few], start).log_theta
    lower = torch.linalg.cholesky(variance_components.covariance(grams, noise, log_theta))
    alpha = torch.cholesky_solve(y, lower) * scale
    parts = zip(log_theta.exp().tolist(), kernels, strict=False)  # the constant has no interactions
    return sum((weight * kernel.interactions(z, alpha) for weight, kernel in parts), start=torch.zeros(()))


def _complements(coalitions: Tensor) -> Tensor:
    """Return the row numbers (P, 2) of each coalition with the last player, and of its complement.

    Coalitions whose complement is missing are left out. The full coalition comes first.
    """
    rows = {row.tobytes(): number for number, row in enumerate(coalitions.numpy())}
    inverses = [row.tobytes() for row in (~coalitions).numpy()]
    full = int(coalitions.all(1).nonzero()[0])
    pairs = [
        (number, rows[inverses[number]])
        for number in rows.values()
        if coalitions[number, -1] and number != full and inverses[number] in rows
    ]
    return torch.tensor([(full, rows[inverses[full]]), *pairs])


def exact(coalitions: Tensor, outcomes: Tensor) -> Tensor:
    """Return the interactions (T, n, n) of T games from the values (S, T) of all 2ⁿ coalitions (S, n)."""
    n = coalitions.shape[1]
    sizes = coalitions.sum(1).double()
    present = coalitions.double()
    absent = 1 - present

    def weights(others: Tensor) -> Tensor:
        """Return outcomes / ((n − 1) C(n − 2, s)) for s of the n − 2 others, 0 if s is impossible."""
        possible = (others >= 0) & (others <= n - 2)
        s = others.clamp(0, n - 2)
        log_count = math.lgamma(n - 1) - torch.lgamma(s + 1) - torch.lgamma(n - 1 - s)
        return torch.where(possible, torch.exp(-log_count) / (n - 1), 0)[:, None] * outcomes

    both = torch.einsum("sa,st,sb->tab", present, weights(sizes - 2), present)
    neither = torch.einsum("sa,st,sb->tab", absent, weights(sizes), absent)
    one = torch.einsum("sa,st,sb->tab", present, weights(sizes - 1), absent)
    result = both + neither - one - one.transpose(1, 2)
    return result.masked_fill(torch.eye(n, dtype=torch.bool), 0)
