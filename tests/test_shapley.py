"""Shapley values: axioms, exact games, a plain replica of the definition, error bars, stopping."""

import itertools
import math

import pytest
import torch

from lib.explain import coalitions as draw
from lib.explain import interactions
from lib.explain.shapley import ESTIMATORS, Plan, choose, exact, odd_gp
from lib.runtime.errors import RunFailed

SAMPLERS = ("odd-gp", "permutation", "per-patch")


def grid(side: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()


def random_game(n, targets=1, seed=0):
    """A game of 2ⁿ random values."""
    table = torch.randn(2**n, targets, dtype=torch.float64, generator=draw.generator_of(seed))
    return lambda coalitions: table[(coalitions * 2 ** torch.arange(n)).sum(1)]


def polynomial(n, order, seed=0):
    """A smooth game: random coefficients of all monomials up to an order."""
    if n == 9:  # tabulated, for tests that ask often
        everything = polynomial_of(9, order, seed)(draw.all_coalitions(9))
        return lambda coalitions: everything[(coalitions * 2 ** torch.arange(9)).sum(1)]
    return polynomial_of(n, order, seed)


def polynomial_of(n, order, seed):
    generator = draw.generator_of(seed)
    subsets = [s for k in range(order + 1) for s in itertools.combinations(range(n), k)]
    coefficients = torch.randn(len(subsets), 1, dtype=torch.float64, generator=generator)

    def game(coalitions):
        present = coalitions.double()
        return torch.stack([present[:, list(subset)].prod(1) for subset in subsets], 1) @ coefficients

    return game


def by_definition(game, n):
    """The mean gain over all orders in which players may join, in plain Python floats."""
    values = {
        s: float(game(torch.tensor([[i in s for i in range(n)]]))[0, 0])
        for k in range(n + 1)
        for s in map(frozenset, itertools.combinations(range(n), k))
    }
    result = []
    for player in range(n):
        total = 0.0
        for s, value in values.items():
            if player not in s:
                weight = math.factorial(len(s)) * math.factorial(n - 1 - len(s)) / math.factorial(n)
                total += weight * (values[s | {player}] - value)
        result.append(total)
    return torch.tensor(result, dtype=torch.float64)


def test_exact_values_are_those_of_a_plain_loop_over_ten_players():
    game = random_game(10)
    positions = torch.rand(10, 2, dtype=torch.float64)
    estimate = exact(game, positions, Plan(2**10))
    assert torch.allclose(estimate.values[0], by_definition(game, 10), rtol=0, atol=1e-12)
    assert estimate.evaluations == 2**10
    assert estimate.half_width == 0
    assert estimate.converged


@pytest.mark.parametrize("name", ESTIMATORS)
def test_values_add_up_to_what_the_full_coalition_has_over_the_empty_one(name):
    game = random_game(9, targets=3)
    estimate = ESTIMATORS[name](game, grid(3), Plan(2**9 if name == "exact" else 200))
    assert torch.allclose(estimate.values.sum(1), estimate.full - estimate.empty, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("order", [1, 2])
def test_games_of_the_first_and_second_order_are_recovered(name, order):
    if name == "per-patch" and order == 2:
        pytest.skip("contexts of one player alone do not cancel what pairs add")
    game, n = polynomial(9, order), 9
    estimate = ESTIMATORS[name](game, grid(3), Plan(2**9 if name == "exact" else 200))
    assert torch.allclose(estimate.values[0], by_definition(game, n), rtol=0, atol=1e-6)
    assert estimate.half_width < 1e-3


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_constant_game_gives_zeros(name):
    def game(coalitions):
        return torch.full((len(coalitions), 2), 7.0, dtype=torch.float64)

    estimate = ESTIMATORS[name](game, grid(3), Plan(2**9 if name == "exact" else 100))
    assert not estimate.values.any()
    assert estimate.half_width == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_values_are_linear_in_the_game(name):
    game = random_game(9, targets=2)
    plan = Plan(2**9 if name == "exact" else 120)
    one, other = ESTIMATORS[name](game, grid(3), plan).values
    (mixed,) = ESTIMATORS[name](
        lambda s: game(s) @ torch.tensor([[2.0], [-3.0]]).double(), grid(3), plan
    ).values
    # The process learns hyper-parameters from the data, and contexts of one player alone share out what they
    # miss of the sum by their errors: both are linear up to what they are uncertain of.
    exactly = name in ("exact", "permutation")
    assert torch.allclose(mixed, 2 * one - 3 * other, rtol=0, atol=1e-9 if exactly else 1.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_players_have_equal_values_and_a_dummy_has_none_within_the_error(name):
    game = polynomial(7, 3)

    def with_twins_and_dummy(coalitions):  # players 7 and 8: a twin of nobody, and of player 0
        both = coalitions[:, [0]] & coalitions[:, [8]]
        return game(coalitions[:, :7]) + 2.0 * (coalitions[:, [0]] | coalitions[:, [8]]) + both

    def symmetric(coalitions):
        first, last = coalitions[:, 0] & coalitions[:, 8], coalitions[:, 0] | coalitions[:, 8]
        return with_twins_and_dummy(torch.cat([first[:, None], coalitions[:, 1:8], last[:, None]], 1))

    estimate = ESTIMATORS[name](symmetric, grid(3), Plan(2**9 if name == "exact" else 400))
    values, error = estimate.values[0], 4 * estimate.standard_errors[0] + 1e-9
    assert abs(values[7]) <= error[7]
    assert abs(values[0] - values[8]) <= error[0] + error[8]


@pytest.mark.parametrize("name", SAMPLERS)
def test_errors_are_as_large_as_stated_and_shrink_with_the_budget(name):
    game = polynomial(9, 5)
    truth = by_definition(game, 9)
    widths, inside = [], []
    for budget in (60, 240):
        estimates = [ESTIMATORS[name](game, grid(3), Plan(budget, seed=seed)) for seed in range(12)]
        widths.append(sum(each.half_width for each in estimates))
        if budget == 240:
            z = torch.cat([(e.values[0] - truth).abs() / e.standard_errors[0] for e in estimates])
            inside.append((z <= 1.96).double().mean())
    assert widths[1] < 0.7 * widths[0]
    assert inside[0] > 0.8


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_budget_is_kept_and_nearly_used(name):
    for n, budget in ((9, 100), (16, 333), (25, 900)):
        estimate = ESTIMATORS[name](polynomial(n, 1), grid(math.isqrt(n)), Plan(budget))
        assert budget - 2 * n < estimate.evaluations <= budget


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_gives_the_same_values_and_another_seed_others(name):
    game = random_game(9)
    first, again, other = (ESTIMATORS[name](game, grid(3), Plan(100, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


@pytest.mark.parametrize("name", SAMPLERS)
def test_whoever_watches_does_not_change_the_values(name):
    game, seen = random_game(9), []
    plain = ESTIMATORS[name](game, grid(3), Plan(300))
    watched = ESTIMATORS[name](game, grid(3), Plan(300, watched=True, report=seen.append))
    assert torch.equal(plain.values, watched.values)
    assert len(seen) > 1
    assert seen[-1] == watched.half_width


def test_estimation_stops_as_soon_as_the_tolerance_is_met():
    game = polynomial(16, 3)
    tolerance = 3 * odd_gp(game, grid(4), Plan(1000)).half_width
    estimate = odd_gp(game, grid(4), Plan(4000, tolerance=tolerance))
    assert estimate.converged
    assert estimate.half_width <= tolerance
    assert estimate.evaluations < 4000
    hopeless = odd_gp(game, grid(4), Plan(400, tolerance=1e-9))
    assert not hopeless.converged
    assert hopeless.evaluations == 400


@pytest.mark.parametrize("name", ["permutation", "per-patch"])
def test_one_sample_without_an_error_bar_is_not_an_estimate_that_converged(name):
    estimate = ESTIMATORS[name](random_game(9), grid(3), Plan(20))
    assert estimate.half_width == math.inf
    assert not estimate.converged


class Stopping:
    """A game that is stopped after so many answers."""

    def __init__(self, game, answers):
        self.game, self.left = game, answers

    def __call__(self, coalitions):
        answered = coalitions[: self.left]
        self.left -= len(answered)
        return self.game(answered)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_game_that_is_stopped_leaves_an_estimate_of_what_was_known(name):
    game = polynomial(9, 3)
    stopped = ESTIMATORS[name](Stopping(game, 151), grid(3), Plan(2**9))
    assert not stopped.converged
    assert stopped.evaluations == 151
    assert (stopped.values[0] - by_definition(game, 9)).abs().max() < 4 * stopped.standard_errors.max()
    assert torch.allclose(stopped.values.sum(1), stopped.full - stopped.empty, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("answers", [0, 1, 9])
def test_a_game_that_is_stopped_too_soon_is_a_failure_with_a_reason(name, answers):
    with pytest.raises(RunFailed, match="stopped"):
        ESTIMATORS[name](Stopping(polynomial(9, 1), answers), grid(3), Plan(2**9))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_two_and_three_players_are_enumerated(n):
    game = random_game(n)
    estimate = exact(game, torch.rand(n, 2, dtype=torch.float64), Plan(2**n))
    assert choose(n, 3 * n) == "exact"
    assert estimate.evaluations == 2**n
    assert torch.allclose(estimate.values[0], by_definition(game, n), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n", [4, 256])
def test_few_and_many_players_work(name, n):
    truth = torch.arange(n, dtype=torch.float64)
    side = math.isqrt(n)
    estimate = ESTIMATORS[name](lambda s: s.double() @ truth[:, None], grid(side), Plan(3 * n))
    assert (estimate.values[0] - truth).abs().max() <= min(1.0, estimate.half_width) + 1e-5 * n


@pytest.mark.parametrize(("n", "count"), [(4, 7), (9, 30), (9, 200), (9, 255), (16, 500), (64, 300)])
def test_pairs_are_distinct_up_to_their_complement(n, count):
    drawn = draw.distinct_pairs(n, count, draw.generator_of(0))
    keys = {tuple(row) for pair in draw.with_complements(drawn).tolist() for row in pair}
    assert drawn.shape == (count, n)
    assert len(keys) == 2 * count
    assert drawn.sum(1).min() > 0
    assert drawn.sum(1).max() < n


def test_sizes_of_coalitions_follow_their_law():
    drawn = draw.distinct_pairs(64, 2000, draw.generator_of(0))
    sizes = drawn.sum(1)
    law = torch.arange(1, 64).double()
    law = (law * (64 - law)).rsqrt()
    middle = law[15:47].sum() / law.sum()
    assert ((sizes > 15) & (sizes < 48)).double().mean() == pytest.approx(float(middle), abs=0.03)


def test_orders_come_with_their_reverse_and_prefixes_grow_by_one():
    orders = draw.antithetic_orders(6, 4, draw.generator_of(0))
    assert torch.equal(orders[:, 1], orders[:, 0].flip(1))
    prefixes = draw.prefixes(orders)
    assert torch.equal(prefixes.sum(-1), torch.arange(1, 6).expand(4, 2, 5))
    assert torch.equal(prefixes[:, 0], ~prefixes[:, 1].flip(1))


def test_contexts_differ_in_their_player_alone():
    contexts = draw.contexts(5, 3, draw.generator_of(0))
    present, absent = contexts.unbind(2)
    assert torch.equal(present ^ absent, torch.eye(5, dtype=torch.bool).expand(3, 5, 5))
    assert present.diagonal(dim1=1, dim2=2).all()


def interaction_by_definition(game, n, i, j):
    total = 0.0
    others = [player for player in range(n) if player not in (i, j)]
    for k in range(n - 1):
        for subset in itertools.combinations(others, k):
            s = torch.zeros(4, n, dtype=torch.bool)
            s[:, list(subset)] = True
            s[0, [i, j]] = s[1, i] = s[2, j] = True
            both, first, second, neither = game(s)[:, 0].tolist()
            weight = math.factorial(k) * math.factorial(n - 2 - k) / math.factorial(n - 1)
            total += weight * (both - first - second + neither)
    return total


def test_exact_interactions_are_those_of_the_definition():
    game = random_game(6)
    found = interactions.exact(draw.all_coalitions(6), game(draw.all_coalitions(6)))[0]
    assert torch.allclose(found, found.T, rtol=0, atol=1e-14)
    for i, j in itertools.combinations(range(6), 2):
        assert found[i, j] == pytest.approx(interaction_by_definition(game, 6, i, j), abs=1e-12)


def test_interactions_of_every_even_kernel_are_those_of_enumeration():
    coalitions = draw.all_coalitions(9)
    z = 2.0 * coalitions.double() - 1
    alpha = torch.randn(3, 2, dtype=torch.float64)
    for kernel in interactions.even_kernels(grid(3)):
        expected = interactions.exact(coalitions, kernel.gram(z, z[[3, 77, 200]]) @ alpha)
        found = kernel.interactions(z[[3, 77, 200]], alpha)
        assert torch.allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["odd-gp", "permutation"])
def test_interactions_are_estimated_from_the_evaluations_there_are(name):
    game = polynomial(9, 3)
    estimate = ESTIMATORS[name](game, grid(3), Plan(300))
    found = interactions.estimate(estimate.coalitions, estimate.outcomes, grid(3))[0]
    truth = interactions.exact(draw.all_coalitions(9), game(draw.all_coalitions(9)))[0]
    assert (found - truth).square().mean() < 0.02 * truth.square().mean()
