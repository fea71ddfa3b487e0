"""The spatial process: kernels against enumeration, hyper-parameters against autograd, calibration."""

import math

import pytest
import torch

from lib.explain import error_check, variance_components
from lib.explain.coalitions import all_coalitions, distinct_pairs, generator_of
from lib.explain.kernels import Linear, Products, near_weights, spatial_kernels
from lib.explain.shapley import shapley_weights
from lib.explain.spatial_process import shapley_posterior


def grid(rows: int, columns: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()


def signs(coalitions):
    return 2.0 * coalitions.double() - 1


def kernels_of(n):
    """All kinds of kernels on n scattered players."""
    positions = 2 * torch.rand(n, 2, dtype=torch.float64, generator=generator_of(n))
    return [*spatial_kernels(positions), Products(torch.rand(5, n, dtype=torch.float64) * 0.9)]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_the_shapley_values_of_every_kernel_are_those_of_enumeration(n):
    coalitions = all_coalitions(n)
    z = signs(coalitions)
    for kernel in kernels_of(n):
        by_enumeration = kernel.gram(z, z).T @ shapley_weights(coalitions)
        assert torch.allclose(kernel.shapley(z), by_enumeration, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_the_prior_variance_of_every_kernel_is_that_of_enumeration(n):
    coalitions = all_coalitions(n)
    z, weights = signs(coalitions), shapley_weights(coalitions)
    for kernel in kernels_of(n):
        by_enumeration = (weights.T @ kernel.gram(z, z) @ weights).diagonal()
        assert torch.allclose(kernel.prior_variance(), by_enumeration, rtol=0, atol=1e-10)


def test_a_kernel_of_products_is_the_sum_over_odd_subsets_that_it_says_it_is():
    n, g = 5, torch.tensor([[0.9, 0.1, 0.5, 0.0, 0.3]], dtype=torch.float64)
    s, t = signs(all_coalitions(n)[[7, 20]]), signs(all_coalitions(n)[[3, 30]])

    def odd_subsets(a, b):
        members = all_coalitions(n)
        return sum((g[0] * a * b)[subset].prod() for subset in members if subset.sum() % 2)

    own = odd_subsets(s[0], s[0])
    expected = torch.stack([torch.stack([odd_subsets(a, b) for b in t]) for a in s]) / own
    assert torch.allclose(Products(g).gram(s, t), expected, rtol=0, atol=1e-14)


def test_quadrature_is_exact_for_large_neighbourhoods_too():
    # All players alike: the Shapley value at z = 1 is by symmetry the kernel's rise from ∅ to N, shared out.
    for n in (64, 256, 400):
        for scale in (0.05, 0.5):
            everyone = torch.ones(1, n, dtype=torch.float64)
            kernel = Products(scale * everyone)
            rise = 2 * kernel.gram(everyone, everyone)
            assert torch.allclose(kernel.shapley(everyone), rise / n, rtol=1e-8)


def test_half_of_a_symmetric_gram_matrix_is_all_of_it():
    z = signs(distinct_pairs(16, 300, generator_of(0)))
    for kernel in spatial_kernels(grid(4, 4)):
        gram = kernel.symmetric_gram(z)
        assert torch.allclose(gram, kernel.gram(z, z), rtol=0, atol=1e-13)
        assert torch.linalg.eigvalsh(gram).min() > -1e-10
        if isinstance(kernel, Products):
            assert torch.equal(gram, gram.T)
            assert torch.allclose(gram.diagonal(), torch.ones(()).double())


def test_a_gram_matrix_from_tables_is_that_of_exponentials(monkeypatch):
    from lib.explain import kernels

    z = signs(distinct_pairs(16, 300, generator_of(0)))
    kernel = Products(0.8 * near_weights(grid(4, 4)))
    tables = kernel.symmetric_gram(z)
    monkeypatch.setattr(kernels, "TABLE_PLAYERS", 0)
    assert torch.allclose(kernel.symmetric_gram(z), tables, rtol=0, atol=1e-13)


def test_weights_fall_with_distance_and_are_dropped_where_negligible():
    weights = near_weights(grid(1, 5))
    assert weights[0, :3].tolist() == pytest.approx([1, math.exp(-1), math.exp(-4)])
    assert weights[0, 3:].tolist() == [0, 0]


def some_data(m=60, columns=2):
    z = signs(distinct_pairs(9, m, generator_of(1)))
    kernels = [Linear(torch.eye(9, dtype=torch.float64)), *spatial_kernels(grid(3, 3))[2:5]]
    grams = torch.stack([kernel.symmetric_gram(z) for kernel in kernels])
    y = torch.randn(m, columns, dtype=torch.float64, generator=generator_of(2))
    return grams, torch.rand(m, dtype=torch.float64, generator=generator_of(3)), y


def test_the_gradient_of_the_marginal_likelihood_is_that_of_autograd():
    grams, noise, y = some_data()
    prior = torch.full((5,), -2.0, dtype=torch.float64)
    log_theta = torch.tensor([-1.0, -3, 0.5, -2, -1.5], dtype=torch.float64, requires_grad=True)
    theta = log_theta.exp()
    covariance = (theta[:-1, None, None] * grams).sum(0) + torch.diag(theta[-1] * noise + 1e-10)
    likelihood = sum(
        torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(column)
        for column in y.T
    )
    density = likelihood - 0.5 * ((log_theta - prior) / variance_components.PRIOR_DEVIATION).square().sum()
    (expected,) = torch.autograd.grad(-density, log_theta)
    point = variance_components._evaluate(grams, noise, y, prior, log_theta.detach())
    gradient, curvature = variance_components._derivatives(grams, noise, y, prior, point)
    assert torch.allclose(gradient, expected, rtol=1e-8)
    assert torch.linalg.eigvalsh(curvature).min() > 0
    constant = len(y) * y.shape[1] / 2 * math.log(2 * math.pi)
    assert point.objective == pytest.approx(float(-density.detach()) - constant, rel=1e-9)


def test_traces_are_estimated_without_bias():
    """Over all unit vectors, each of length √m, the mean of gᵀ K⁻¹ K_k g is the trace itself."""
    grams, noise, y = some_data()
    prior = torch.full((5,), -2.0, dtype=torch.float64)
    point = variance_components._evaluate(grams, noise, y, prior, prior)
    units = math.sqrt(len(y)) * torch.eye(len(y), dtype=torch.float64)
    traced = variance_components.Probes(units, torch.cat([grams @ units, (noise[:, None] * units)[None]]))
    exact = variance_components._derivatives(grams, noise, y, prior, point)
    estimated = variance_components._derivatives(grams, noise, y, prior, point, traced)
    for one, other in zip(exact, estimated, strict=True):
        assert torch.allclose(one, other, rtol=1e-10)


def test_a_search_with_estimated_traces_ends_near_the_maximum():
    grams, noise, y = some_data(200, 1)
    prior = torch.full((5,), -2.0, dtype=torch.float64)
    traced = variance_components.probes(grams, noise)
    exact = variance_components.fit(grams, noise, y, prior)
    estimated = variance_components._search(grams, noise, y, prior, prior, 0.05, traced)
    assert abs(estimated.objective - exact.objective) < 1.0


def test_the_search_ends_where_nothing_is_left_to_gain():
    grams, noise, y = some_data()
    prior = torch.full((5,), -2.0, dtype=torch.float64)
    found = variance_components.fit(grams, noise, y, prior)
    log_theta = found.log_theta
    for _ in range(200):  # plain gradient descent from there on
        point = variance_components._evaluate(grams, noise, y, prior, log_theta)
        log_theta = log_theta - 0.02 * variance_components._derivatives(grams, noise, y, prior, point)[0]
    assert (
        0
        <= found.objective - point.objective
        < 2 * variance_components.NEARLY * variance_components.ENOUGH * y.shape[1]
    )


def test_the_posterior_is_that_of_a_dense_gaussian_in_float64(monkeypatch):
    """φ and its deviation from the joint covariance of all 2ⁿ values, conditioned by brute force."""
    monkeypatch.setattr(error_check, "widened", lambda errors, *_: errors)
    n = 6
    coalitions = all_coalitions(n)
    kernels = spatial_kernels(grid(2, 3))
    pairs = distinct_pairs(n, 20, generator_of(0))
    odd = torch.randn(20, 1, dtype=torch.float64, generator=generator_of(1))
    full = torch.tensor([1.5], dtype=torch.float64)
    found = shapley_posterior(kernels, pairs, odd, full)

    z = torch.cat([torch.ones(1, n).double(), signs(pairs)])
    y = torch.cat([full[None], odd])
    scale = y.square().mean().sqrt()
    noise = torch.ones(21).double()
    noise[0] = 1e-8
    grams = torch.stack([kernel.gram(z, z) for kernel in kernels])
    start = torch.tensor([kernel.usual_log_weight for kernel in kernels] + [-6.0]).double()
    theta = variance_components.fit(grams, noise, y / scale, start).log_theta.exp()
    everything = torch.cat([z, signs(coalitions)])
    joint = sum(t * k.gram(everything, everything) for t, k in zip(theta[:-1], kernels, strict=True))
    data = joint[:21, :21] + torch.diag(theta[-1] * noise + 1e-10)
    gain = torch.linalg.solve(data, joint[:21, 21:]).T
    weights = shapley_weights(coalitions)
    mean = weights.T @ gain @ y
    covariance = weights.T @ (joint[21:, 21:] - gain @ joint[:21, 21:]) @ weights
    assert torch.allclose(found.values[0], mean[:, 0], rtol=0, atol=1e-9)
    assert torch.allclose(
        found.standard_errors[0], scale * covariance.diagonal().sqrt(), rtol=1e-5, atol=1e-9
    )


def drawn_game(positions, seed):
    """Values of all coalitions, drawn from the prior: what the process is right about."""
    z = signs(all_coalitions(len(positions)))
    theta = [0.3, 0.3, 0.2, 0.3, 0.1, 0.1, 0.05]
    kernels = spatial_kernels(positions)
    covariance = sum(t * k.gram(z, z) for t, k in zip(theta, kernels, strict=True))
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(len(z)))
    return root @ torch.randn(len(z), 1, dtype=torch.float64, generator=generator_of(seed))


def test_ninety_five_of_a_hundred_intervals_hold_the_truth():
    positions = grid(3, 3)
    coalitions = all_coalitions(9)
    place = 2 ** torch.arange(9)
    inside = []
    for seed in range(20):
        game = drawn_game(positions, seed)
        truth = (game.T @ shapley_weights(coalitions))[0]
        pairs = distinct_pairs(9, 50, generator_of(seed))
        odd = (game[(pairs * place).sum(1)] - game[(~pairs * place).sum(1)]) / 2
        found = shapley_posterior(spatial_kernels(positions), pairs, odd, (game[-1] - game[0]) / 2)
        inside.append((found.values[0] - truth).abs() <= 1.96 * found.standard_errors[0])
    assert 0.88 < torch.cat(inside).double().mean() < 0.995


def test_blocks_agree_with_one_process_and_state_their_larger_error(monkeypatch):
    from lib.explain import spatial_process

    positions = grid(3, 3)
    game = drawn_game(positions, 5)
    place = 2 ** torch.arange(9)
    pairs = distinct_pairs(9, 160, generator_of(5))
    odd = (game[(pairs * place).sum(1)] - game[(~pairs * place).sum(1)]) / 2
    arguments = spatial_kernels(positions), pairs, odd, (game[-1] - game[0]) / 2
    monkeypatch.setattr(spatial_process, "ROWS_OF_LIKELIHOOD", 81)
    whole = shapley_posterior(*arguments)
    monkeypatch.setattr(spatial_process, "ROWS_AT_ONCE", 81)
    blocks = shapley_posterior(*arguments)
    assert (blocks.standard_errors > whole.standard_errors).all()
    difference = (blocks.values - whole.values).abs()
    assert (difference < 3 * blocks.standard_errors).all()
    assert difference.max() > 0


def test_several_games_at_once_have_the_scale_each_has_alone():
    positions = grid(3, 3)
    game = drawn_game(positions, 1)
    place = 2 ** torch.arange(9)
    pairs = distinct_pairs(9, 40, generator_of(1))
    odd = (game[(pairs * place).sum(1)] - game[(~pairs * place).sum(1)]) / 2
    full = (game[-1] - game[0]) / 2
    alone = shapley_posterior(spatial_kernels(positions), pairs, odd, full)
    both = shapley_posterior(
        spatial_kernels(positions), pairs, torch.cat([odd, -1000 * odd], 1), torch.cat([full, -1000 * full])
    )
    assert torch.allclose(both.values[1], -1000 * both.values[0], rtol=1e-9)
    assert torch.allclose(both.values[0], alone.values[0], rtol=0, atol=float(alone.standard_errors.max()))
