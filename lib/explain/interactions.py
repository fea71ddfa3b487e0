"""Pairwise Shapley interactions of a game (Grabisch & Roubens 1999), exact or from evaluations there are.

I_ij is the mean of v(S ∪ ij) − v(S ∪ i) − v(S ∪ j) + v(S) over coalitions S of the others, all sizes alike:
above 0 where two players say more together than each by himself, below where they say the same. Only the
even part u(S) = (v(S) + v(Sᶜ)) / 2 of a game has interactions of pairs, and the complementary pairs of
evaluations that Shapley values were estimated from know it.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lib.explain import variance_components
from lib.explain.kernels import exponents, near_weights, quadrature, subset_products
from lib.explain.spatial_process import EXACT, ROWS_AT_ONCE, ROWS_OF_LIKELIHOOD

# So small that in sums over subsets those of two players outweigh all larger ones a million times.
SECOND_ORDER = 1e-3


@dataclass(frozen=True)
class EvenProducts:
    """k(s, t) = Σ_j Σ_{A even, not ∅} Π_{a∈A} g_ja s_a t_a / N = Σ_j (c_j cosh(Σ_a b_ja s_a t_a) − 1) / N.

    The even counterpart of `lib.explain.kernels.Products`, with c and b from there. In each monomial over A
    the players i and j that it holds have the interaction 4 / (|A| − 1): the second difference is 4 times
    the monomial of the others, of even number, whose mean over coalitions that hold each of them with
    probability q is (2q − 1)^(|A|−2); and ∫₀¹ (2q − 1)^(|A|−2) dq = 1 / (|A| − 1) = ∫₀¹ ζ^(|A|−2) dζ.

    Attributes:
        weights: g (J, n), in [0, 1): a row a neighbourhood.
    """

    weights: Tensor

    @cached_property
    def _norm(self) -> float:
        everyone = torch.ones_like(self.weights[:1])
        return float(self._sum(everyone, everyone))

    def _sum(self, s: Tensor, t: Tensor) -> Tensor:
        result = s.new_zeros(len(s), len(t))
        for left, right, cosine in exponents(self.weights, s, t):
            result.add_(torch.cosh(left @ right).mul_(cosine).sub_(1))
        return result

    def gram(self, s: Tensor, t: Tensor) -> Tensor:
        """Return k of every row of `s` (S, n) with every row of `t` (T, n), (S, T)."""
        return self._sum(s, t) / self._norm

    def interactions(self, t: Tensor, alpha: Tensor) -> Tensor:
        """Return those of s → Σ_m alpha_mt k(s, t_m), for each column of alpha (M, T): (T, n, n).

        The products over the others than i and j are P±, those over all, divided by what i and j are in
        them: 2 ∫ Σ_j Σ_± P±_j g_i t_i / (1 ± ζ g_i t_i) · g_j t_j / (1 ± ζ g_j t_j) dζ / N.
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
    """Return the kernels of an even function of image patches at `positions` (n, 2)."""
    everywhere = torch.ones_like(positions[:, 0])[None]
    near = near_weights(positions)
    scales = (SECOND_ORDER, 0.05, 0.2, 0.5)
    return [
        *(EvenProducts(scale * everywhere) for scale in scales),
        *(EvenProducts(scale * near) for scale in (SECOND_ORDER, 0.3, 0.8)),
    ]


def estimate(coalitions: Tensor, outcomes: Tensor, positions: Tensor) -> Tensor:
    """Return the interactions (T, n, n) of T games from evaluations that hold complementary pairs.

    Args:
        coalitions, outcomes: (S, n) and (S, T) as in `lib.explain.shapley.Estimate`, both ends among them.
        positions: (n, 2) as there.
    """
    first, second = _complements(coalitions)[:ROWS_AT_ONCE].T
    even = (outcomes[first] + outcomes[second]) / 2
    z = 2.0 * coalitions[first].double() - 1
    mean, scale = even.mean(0), even.std(0, correction=0)
    y = (even - mean) / torch.where(scale > 0, scale, 1)
    kernels = even_kernels(positions)
    noise = torch.ones_like(y[:, 0])
    noise[0] = EXACT
    grams = torch.stack([kernel.gram(z, z) for kernel in kernels] + [torch.ones(len(z), len(z)).double()])
    few = slice(ROWS_OF_LIKELIHOOD)
    start = torch.tensor([-3.0] * len(grams) + [-4.0]).double()
    log_theta = variance_components.fit(grams[:, few, few], noise[few], y[few], start).log_theta
    lower = torch.linalg.cholesky(variance_components.covariance(grams, noise, log_theta))
    alpha = torch.cholesky_solve(y, lower) * scale
    parts = zip(log_theta.exp().tolist(), kernels, strict=False)  # the constant and the noise have none
    return sum(weight * kernel.interactions(z, alpha) for weight, kernel in parts)


def _complements(coalitions: Tensor) -> Tensor:
    """Return the rows of each coalition that holds the last player, and of its complement: (P, 2).

    The grand coalition comes first.
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
        """1 / ((n − 1) C(n − 2, s)) of s of the n − 2 others, times the outcomes; 0 where there are none."""
        possible = (others >= 0) & (others <= n - 2)
        s = others.clamp(0, n - 2)
        log_count = math.lgamma(n - 1) - torch.lgamma(s + 1) - torch.lgamma(n - 1 - s)
        return torch.where(possible, torch.exp(-log_count) / (n - 1), 0)[:, None] * outcomes

    both = torch.einsum("sa,st,sb->tab", present, weights(sizes - 2), present)
    neither = torch.einsum("sa,st,sb->tab", absent, weights(sizes), absent)
    one = torch.einsum("sa,st,sb->tab", present, weights(sizes - 1), absent)
    result = both + neither - one - one.transpose(1, 2)
    return result.masked_fill(torch.eye(n, dtype=torch.bool), 0)
