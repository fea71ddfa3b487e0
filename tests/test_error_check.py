"""Error bars of the Gaussian process, checked on its data: formulas against replicas, coverage of games."""

import math

import pytest
import torch

from benchmarks.shapley_families import game_of
from lib.explain import error_check
from lib.explain.coalitions import all_coalitions, distinct_pairs, generator_of
from lib.explain.error_check import Design, LeaveOneOut
from lib.explain.shapley import Plan, odd_gp, shapley_weights


def some_process(m=12):
    generator = generator_of(0)
    root = torch.randn(m, m, dtype=torch.float64, generator=generator)
    covariance = root @ root.T / m + 0.1 * torch.eye(m)
    return covariance, torch.randn(m, dtype=torch.float64, generator=generator)


def test_errors_of_leaving_one_out_are_those_of_conditioning_on_the_other_rows():
    covariance, y = some_process()
    found = error_check.leave_one_out(torch.linalg.cholesky(covariance), y, len(y))
    for row in range(len(y)):
        others = [other for other in range(len(y)) if other != row]
        gain = torch.linalg.solve(covariance[others][:, others], covariance[others, row])
        error = y[row] - gain @ y[others]
        variance = covariance[row, row] - gain @ covariance[others, row]
        assert torch.allclose(found.errors[row], error, rtol=1e-12)
        assert torch.allclose(found.variances[row], variance, rtol=1e-12)


def test_the_last_rows_alone_have_the_errors_that_they_have_among_all():
    covariance, y = some_process()
    lower = torch.linalg.cholesky(covariance)
    everything, few = (error_check.leave_one_out(lower, y, rows) for rows in (12, 5))
    assert torch.allclose(few.errors, everything.errors[-5:], rtol=1e-12)
    assert torch.allclose(few.variances, everything.variances[-5:], rtol=1e-12)
    assert not len(error_check.leave_one_out(lower, y, 0).errors)


def test_the_variance_of_a_design_is_that_of_sampling_again_and_again():
    """Estimate the Shapley values of a random odd game of 12 players by φ̂ of the docstring, 600 times."""
    n, pairs = 12, 60
    coalitions = all_coalitions(n)
    values = torch.randn(2**n, dtype=torch.float64, generator=generator_of(1))
    odd = values - values.flip(0)  # the complement of row r is row 2ⁿ − 1 − r
    odd[(coalitions.sum(1) < 2) | (coalitions.sum(1) > n - 2)] = 0  # nothing is left of what is known
    truth = shapley_weights(coalitions).T @ odd
    estimates, variances = [], []
    for seed in range(600):
        sample = distinct_pairs(n, pairs, generator_of(seed))
        z, size = 2.0 * sample.double() - 1, sample.sum(1).double()
        e = odd[(sample * 2 ** torch.arange(n)).sum(1)]
        omega = (size * (n - size)).rsqrt()
        total = 4 / (n * (n - 1)) * (omega * size * (n - size)).sum()
        estimates.append(2 / total * ((omega * e) @ (z - z.mean(1, keepdim=True))))
        variances.append(error_check.design(sample, sample).variance(e.square()))
    found = torch.stack(estimates)
    assert (found.mean(0) - truth).abs().max() < 0.2 * found.std(0).mean()
    assert 0.8 < torch.stack(variances).mean() / found.var(0).mean() < 1.25


def test_a_player_whose_own_coalition_is_unknown_has_the_error_of_its_weight():
    n = 8
    coalitions = all_coalitions(n)
    sample = coalitions[coalitions.sum(1) == 1][:5]  # those of players 0 to 4
    sample[3] = ~sample[3]  # the complement tells the same
    found = error_check.design(sample, sample).variance(torch.full((5,), 0.09, dtype=torch.float64))
    assert found.tolist() == pytest.approx(5 * [0.0] + 3 * [(2 / n) ** 2 * 0.09])
    odd = coalitions.sum(1) == 1  # as is the Shapley weight of w at {i} and at its complement, 2 / n
    weights = shapley_weights(coalitions)
    assert (weights[odd] - weights.flip(0)[odd]).diagonal().tolist() == pytest.approx(n * [2 / n])


def test_a_few_rows_that_are_checked_stand_for_all():
    sample = distinct_pairs(16, 1000, generator_of(0))
    squares = torch.rand(1000, dtype=torch.float64, generator=generator_of(1))
    everything = error_check.design(sample, sample).variance(squares)
    few = error_check.design(sample, sample[-400:]).variance(squares[-400:])
    assert torch.allclose(few, everything, rtol=0.15)


def test_pairs_that_are_all_in_the_sample_leave_no_error():
    for n in (2, 3, 4, 5):
        sample = all_coalitions(n)[1 : 2 ** (n - 1)]
        squares = torch.ones(len(sample), dtype=torch.float64)
        assert error_check.design(sample, sample).variance(squares).abs().max() < 1e-15


def test_error_bars_grow_where_the_process_is_too_sure_and_never_shrink():
    ones = torch.ones(4, dtype=torch.float64)
    sample = Design(ones / 4, ones > 1, torch.zeros(2, dtype=torch.float64))
    errors = torch.tensor([0.5, 3.0], dtype=torch.float64)
    assert error_check.widened(errors, LeaveOneOut(0.1 * ones, ones), sample).tolist() == [0.5, 3.0]
    assert error_check.widened(errors, LeaveOneOut(2 * ones, ones), sample).tolist() == [2.0, 6.0]
    nothing = error_check.design(torch.zeros(0, 2, dtype=torch.bool), torch.zeros(0, 2, dtype=torch.bool))
    assert error_check.widened(errors, LeaveOneOut(ones[:0], ones[:0]), nothing).tolist() == [0.5, 3]


def estimate(games, budget, seed=0):
    def together(coalitions):
        return torch.cat([game.of_tensor(coalitions) for game in games], 1)

    return odd_gp(together, games[0].positions, Plan(budget, seed=seed))


@pytest.mark.parametrize("budget", [200, 1800])  # with exact and with estimated traces
def test_a_class_has_the_same_values_and_errors_whatever_else_is_asked(budget):
    families = ("threshold", "additive", "parity", "majority", "products of 3", "all-halves")
    games = [game_of(family, 4, 0) for family in families[: 6 if budget == 200 else 2]]
    together = estimate(games, budget)
    for row, game in enumerate(games):
        alone = estimate([game], budget)
        assert torch.equal(together.values[row], alone.values[0])
        assert torch.equal(together.standard_errors[row], alone.standard_errors[0])


@pytest.mark.parametrize("family", ["products of 3", "threshold", "parity", "majority", "both-halves"])
def test_intervals_of_hard_games_hold_the_truth_beside_an_easy_game(family):
    found = []
    for seed in range(6):
        game, easy = game_of(family, 4, seed), game_of("additive", 4, 100 + seed)
        both = estimate([game, easy], 300, seed)
        found.append(game.coverage(both.values[0], both.standard_errors[0]))
    assert sum(found) / len(found) >= 0.92


def test_intervals_hold_the_truth_where_errors_are_rare_and_large():
    found = []
    for seed in range(3):  # all of 24 players are needed, among 49
        game = game_of("all-halves", 7, seed)
        one = estimate([game], 800, seed)
        found.append(game.coverage(one.values[0], one.standard_errors[0]))
    assert sum(found) / len(found) >= 0.92


def test_a_game_of_two_players_or_of_nothing_is_checked_too():
    two = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = odd_gp(lambda s: s.double().sum(1, keepdim=True), two, Plan(6))
    assert found.values[0].tolist() == pytest.approx([1, 1])
    assert math.isfinite(found.half_width)
