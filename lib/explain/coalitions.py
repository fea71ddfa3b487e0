"""Which coalitions of players to ask about: all of them, complementary pairs, permutations, contexts.

A coalition of n players is a row of n booleans, `True` for a player who is present.
"""

import torch
from torch import Tensor

# Beyond this share of all pairs, drawing again what was drawn before would take too long.
CROWDED_SHARE = 0.25


def generator_of(seed: int) -> torch.Generator:
    """Return a source of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def all_coalitions(n: int) -> Tensor:
    """Return the 2ⁿ coalitions, (2ⁿ, n); in row r is player a present if bit a of r is set."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def with_complements(coalitions: Tensor) -> Tensor:
    """Return (P, 2, n): each of `coalitions` (P, n), and after it its complement."""
    return torch.stack([coalitions, ~coalitions], dim=1)


def distinct_pairs(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` coalitions, (count, n) in random order: none twice, none the complement of another.

    Sizes s are drawn systematically from 1 to n − 1 with p(s) ∝ [s (n − s)]^-½, coalitions uniformly within
    a size. That lies between leverage scores (uniform in s; Musco & Witter 2025) and the weights of
    KernelSHAP, ∝ 1 / [s (n − s)]. The grand coalition and the empty one are left out: everyone asks about
    them anyway. If there are fewer than `count` pairs, all of them are returned.
    """
    pairs = 2 ** (n - 1) - 1
    count = min(count, pairs)
    if count > CROWDED_SHARE * pairs:
        drawn = _chosen_pairs(n, count, generator)
    else:
        drawn = torch.empty(0, n, dtype=torch.bool)
        while len(drawn) < count:
            more = _systematic(n, count - len(drawn), generator)
            drawn = _without_repetition(torch.cat([drawn, more]))
    return drawn[torch.randperm(count, generator=generator)]


def _size_weights(n: int) -> Tensor:
    """p(s) for s = 1, …, n − 1, not yet normalised."""
    sizes = torch.arange(1, n, dtype=torch.float64)
    return (sizes * (n - sizes)).rsqrt()


def _systematic(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw coalitions whose sizes come from one uniform number, and equal steps from it on."""
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    cumulative = _size_weights(n).cumsum(0)
    shares = (torch.arange(count) + offset) / count * cumulative[-1]
    sizes = 1 + torch.searchsorted(cumulative, shares).clamp_max(n - 2)
    places = torch.rand(count, n, generator=generator).argsort(1).argsort(1)
    return places < sizes[:, None]


def _without_repetition(coalitions: Tensor) -> Tensor:
    """Return (…, n) without those that came before, as themselves or as their complement."""
    first: dict[bytes, int] = {}
    one_of_two = (coalitions ^ coalitions[:, -1:]).numpy()
    for row, key in enumerate(one_of_two):
        first.setdefault(key.tobytes(), row)
    return coalitions[list(first.values())]


def _chosen_pairs(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw without replacement from all pairs: the largest log(u) / p (Efraimidis & Spirakis 2006)."""
    halves = all_coalitions(n)[1 : 2 ** (n - 1)]  # the last player is absent: one of each pair
    sizes = halves.sum(1)
    log_count = -torch.lgamma(sizes + 1.0) - torch.lgamma(n - sizes + 1.0)
    weights = _size_weights(n)[sizes - 1] * torch.exp(log_count.max() - log_count)
    uniform = torch.rand(len(halves), generator=generator, dtype=torch.float64)
    chosen = halves[(uniform.log() / weights).topk(count).indices]
    return chosen ^ (torch.rand(count, 1, generator=generator) < 0.5)


def antithetic_orders(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return (count, 2, n): random orders of the players, each followed by its reverse."""
    orders = torch.rand(count, n, generator=generator).argsort(1)
    return torch.stack([orders, orders.flip(1)], dim=1)


def prefixes(orders: Tensor) -> Tensor:
    """Return who has come after 1, …, n − 1 steps of each of `orders` (…, n): (…, n − 1, n)."""
    places = orders.argsort(-1)
    return places[..., None, :] < torch.arange(1, orders.shape[-1])[:, None]


def contexts(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` coalitions for each player, with that player and without: (count, n, 2, n).

    The others are present with a probability that is drawn, uniformly from [0, 1], for each coalition: all
    sizes are then equally likely, as the Shapley value wants it (Owen 1972).
    """
    probability = torch.rand(count, n, 1, generator=generator)
    others = torch.rand(count, n, n, generator=generator) < probability
    player = torch.eye(n, dtype=torch.bool)
    return torch.stack([others | player, others & ~player], dim=2)
