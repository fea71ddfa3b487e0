"""Samples of coalitions to evaluate: all of them, complementary pairs, permutations, contexts.

A coalition of n players is a row of n booleans, `True` for a player who is present.
"""

import torch
from torch import Tensor

# Up to this share of all pairs, repetitions are drawn again. Beyond it, that would take too long.
CROWDED_SHARE = 0.25


def generator_of(seed: int) -> torch.Generator:
    """Return a new random number generator with this seed."""
    return torch.Generator().manual_seed(seed)


def all_coalitions(n: int) -> Tensor:
    """Return the 2ⁿ coalitions (2ⁿ, n): player a is present in row r if bit a of r is set."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def with_complements(coalitions: Tensor) -> Tensor:
    """Return each of `coalitions` (P, n) together with its complement, (P, 2, n)."""
    return torch.stack([coalitions, ~coalitions], dim=1)


def distinct_pairs(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` coalitions (count, n) in random order: no two are equal or complementary.

    Sizes s from 1 to n − 1 are drawn by systematic sampling with p(s) ∝ [s (n − s)]^-½, and coalitions of a
    size uniformly. These probabilities lie between leverage scores (uniform in s; Musco & Witter 2025) and
    the weights of KernelSHAP, ∝ 1 / [s (n − s)]. The grand and the empty coalition are left out, because
    every estimator evaluates them anyway. If there are at most `count` pairs, all pairs are returned.
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


def pairs_among(coalitions: Tensor) -> Tensor:
    """Return one coalition (P, n) of each complementary pair of which both are among `coalitions` (S, n)."""
    rows = {row.tobytes(): number for number, row in enumerate(coalitions.numpy())}
    empty = [not row.any() or bool(row.all()) for row in coalitions.numpy()]  # asked about in any case
    partners = [rows.get(row.tobytes()) for row in ~coalitions.numpy()]
    first = [i for i, other in enumerate(partners) if other is not None and i < other and not empty[i]]
    return coalitions[torch.tensor(first, dtype=torch.long)]


def known_first(drawn: Tensor, known: Tensor) -> Tensor:
    """Return as many pairs as were drawn (P, n): the known ones (K, n), then drawn ones that are not known.

    If all known pairs are among the drawn ones, e.g. those of a run that was stopped, these stay as they are,
    in their order, and with them all digits of an estimate. Both samples follow the same law.
    """
    keys = [min(row.tobytes(), (~row).tobytes()) for row in drawn.numpy()]
    known_keys = [min(row.tobytes(), (~row).tobytes()) for row in known.numpy()]
    if set(known_keys) <= set(keys):
        return drawn
    rest = [number for number, key in enumerate(keys) if key not in set(known_keys)]
    return torch.cat([known, drawn[torch.tensor(rest, dtype=torch.long)]])[: len(drawn)]


def _size_weights(n: int) -> Tensor:
    """Return p(s) for s = 1, …, n − 1, not normalised."""
    sizes = torch.arange(1, n, dtype=torch.float64)
    return (sizes * (n - sizes)).rsqrt()


def _systematic(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw coalitions by systematic sampling of their sizes.

    The quantiles of the sizes have equal distances and a common random offset, so that each size occurs as
    often as expected, up to one.
    """
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    cumulative = _size_weights(n).cumsum(0)
    shares = (torch.arange(count) + offset) / count * cumulative[-1]
    sizes = 1 + torch.searchsorted(cumulative, shares).clamp_max(n - 2)
    places = torch.rand(count, n, generator=generator).argsort(1).argsort(1)  # random permutations
    return places < sizes[:, None]


def _without_repetition(coalitions: Tensor) -> Tensor:
    """Return `coalitions` (…, n) without those that equal or complement an earlier one."""
    first: dict[bytes, int] = {}
    # The member of each pair in which the last player is absent.
    one_of_two = (coalitions ^ coalitions[:, -1:]).numpy()
    for row, key in enumerate(one_of_two):
        first.setdefault(key.tobytes(), row)
    return coalitions[list(first.values())]


def _chosen_pairs(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw pairs without replacement: those with the largest log(u) / p (Efraimidis & Spirakis 2006)."""
    halves = all_coalitions(n)[1 : 2 ** (n - 1)]  # the last player is absent: one of each pair
    sizes = halves.sum(1)
    # A coalition of size s has the weight p(s) / C(n, s); log_count is log C(n, s) up to a constant.
    log_count = -torch.lgamma(sizes + 1.0) - torch.lgamma(n - sizes + 1.0)
    weights = _size_weights(n)[sizes - 1] * torch.exp(log_count.max() - log_count)
    uniform = torch.rand(len(halves), generator=generator, dtype=torch.float64)
    chosen = halves[(uniform.log() / weights).topk(count).indices]
    return chosen ^ (torch.rand(count, 1, generator=generator) < 0.5)


def antithetic_orders(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return random orders of the players, each followed by its reverse, (count, 2, n)."""
    orders = torch.rand(count, n, generator=generator).argsort(1)
    return torch.stack([orders, orders.flip(1)], dim=1)


def prefixes(orders: Tensor) -> Tensor:
    """Return the coalitions of the first 1, …, n − 1 players in each of `orders` (…, n): (…, n − 1, n)."""
    places = orders.argsort(-1)
    return places[..., None, :] < torch.arange(1, orders.shape[-1])[:, None]


def contexts(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` random coalitions for each player, with that player and without: (count, n, 2, n).

    For each coalition a probability is drawn uniformly from [0, 1], and each other player is present with it.
    All sizes s of the n − 1 others are then equally likely, because C(n − 1, s) ∫₀¹ q^s (1 − q)^(n−1−s) dq =
    1/n. The mean gain of the player over such coalitions is the Shapley value (Owen 1972).
    """
    # Row after row: a larger `count` begins with the contexts of a smaller one, whose values may be known.
    uniform = torch.rand(count, n, n + 1, generator=generator)
    others = uniform[..., 1:] < uniform[..., :1]
    player = torch.eye(n, dtype=torch.bool)
    return torch.stack([others | player, others & ~player], dim=2)
