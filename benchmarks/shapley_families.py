"""Families of games with known Shapley values that are hard in different ways, of any number of players.

x_a is 1 if player a is present and 0 otherwise; z_a = 2 x_a − 1. All weights and subsets are random.

    additive         Σ w_a x_a
    pairwise         the same, and Σ w_ab x_a x_b over 2 n pairs
    products of 3    Σ w_abc x_a x_b x_c over n triples
    threshold        1 if Σ w_a x_a is at least a quota, with integer weights from 1 to 9
    parity           Π z_a over a subset of 3, 5 or 7 players
    unanimity        1 if all of a subset of 2 to n/4 players are present
    majority         1 if more than half are present of a subset of an odd number of players, 3 to n
    all-halves       1 if all of one half of the players are present
    both-halves      1 if in each of two halves of the players more than half are present

By symmetry, each player of a subset A has the Shapley value 1 / |A| in unanimity and majority, and 2 / |A| in
parity; the others have 0. A product of three shares its weight equally.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.shapley_games import Game, grid
from lib.explain.coalitions import generator_of

Value = Callable[[Tensor], Tensor]
LARGEST_WEIGHT = 9  # of a player in `threshold`


def additive(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    weights = torch.randn(n, dtype=torch.float64, generator=generator)
    return lambda s: s.double() @ weights, weights


def pairwise(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    linear, truth = additive(n, generator)
    products, shared = _products(n, 2, 2 * n, generator)
    return lambda s: linear(s) + products(s), truth + shared


def products_of_three(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    return _products(n, 3, n, generator)


def _products(n: int, order: int, count: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    """Return the sum of `count` weighted products of `order` players each, and its Shapley values."""
    members = torch.stack([_subset(n, order, generator) for _ in range(count)])
    weights = torch.randn(count, dtype=torch.float64, generator=generator)
    truth = torch.zeros(n, dtype=torch.float64)
    truth.index_add_(0, members.flatten(), (weights / order).repeat_interleave(order))
    return lambda s: s[:, members].all(-1).double() @ weights, truth


def threshold(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    weights = torch.randint(1, LARGEST_WEIGHT + 1, (n,), generator=generator)
    share = 0.3 + 0.4 * float(torch.rand(1, generator=generator))
    quota = math.ceil(share * int(weights.sum()))
    return lambda s: ((s * weights).sum(1) >= quota).double(), _power(weights, quota)


def _power(weights: Tensor, quota: int) -> Tensor:
    """Return the Shapley values (n,) of weighted voting, by counting coalitions of each size and weight.

    Player i is decisive in the coalitions of others with a weight from quota − w_i to quota − 1 (Mann &
    Shapley 1962). Their number of each size s has the weight s! (n − 1 − s)! / n!.
    """
    n = len(weights)
    log_weight = torch.tensor(
        [math.lgamma(s + 1) + math.lgamma(n - s) - math.lgamma(n + 1) for s in range(n)], dtype=torch.float64
    )
    truth = torch.zeros(n, dtype=torch.float64)
    for player in range(n):
        counts = torch.zeros(n, quota, dtype=torch.float64)
        counts[0, 0] = 1
        for other in (w for k, w in enumerate(weights.tolist()) if k != player):
            joined = counts[:-1, : max(0, quota - other)].clone()
            counts[1:, other : other + joined.shape[1]] += joined
        decisive = counts[:, max(0, quota - int(weights[player])) :].sum(1)
        truth[player] = decisive @ log_weight.exp()
    return truth


def parity(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    size = 3 + 2 * int(torch.randint(3, (1,), generator=generator))
    members = _subset(n, size, generator)
    return lambda s: (2.0 * s[:, members].double() - 1).prod(1), 2 * _equal(n, members)


def unanimity(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    members = _subset(n, int(torch.randint(2, n // 4 + 1, (1,), generator=generator)), generator)
    return lambda s: s[:, members].all(1).double(), _equal(n, members)


def majority(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    size = 3 + 2 * int(torch.randint((n - 1) // 2, (1,), generator=generator))
    members = _subset(n, size, generator)
    return lambda s: (2 * s[:, members].sum(1) > size).double(), _equal(n, members)


def all_halves(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    members = _subset(n, n // 2, generator)
    return lambda s: s[:, members].all(1).double(), _equal(n, members)


def both_halves(n: int, generator: torch.Generator) -> tuple[Value, Tensor]:
    order = torch.randperm(n, generator=generator)
    halves = order[: n // 2], order[n // 2 :]
    truth = torch.zeros(n, dtype=torch.float64)
    for own, others in (halves, halves[::-1]):
        before = len(own) // 2  # of the own half, when its next player makes it more than half
        enough = range(len(others) // 2 + 1, len(others) + 1)
        truth[own] = sum(
            math.comb(len(own) - 1, before) * math.comb(len(others), k) / (n * math.comb(n - 1, before + k))
            for k in enough
        )

    def value(s: Tensor) -> Tensor:
        first, second = (2 * s[:, half].sum(1) > len(half) for half in halves)
        return (first & second).double()

    return value, truth


def _subset(n: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[:size]


def _equal(n: int, members: Tensor) -> Tensor:
    """Return 1 / |A| for the players in A, `members`, and 0 for the others (n,)."""
    truth = torch.zeros(n, dtype=torch.float64)
    truth[members] = 1 / len(members)
    return truth


FAMILIES: dict[str, Callable[[int, torch.Generator], tuple[Value, Tensor]]] = {
    "additive": additive,
    "pairwise": pairwise,
    "products of 3": products_of_three,
    "threshold": threshold,
    "parity": parity,
    "unanimity": unanimity,
    "majority": majority,
    "all-halves": all_halves,
    "both-halves": both_halves,
}


def game_of(family: str, side: int, number: int) -> Game:
    """Return game `number` of a family, with side² players on a grid."""
    value, truth = FAMILIES[family](side**2, generator_of(number))
    return Game(f"{family}/{number}", grid(side), value, (truth, truth))
