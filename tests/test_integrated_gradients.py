"""Integrated gradients: exact where they are known, complete, bounded in memory and in evaluations."""

import math

import pytest
import torch
from conftest import ROOT
from torch import nn

from lib.explain.integrated_gradients import RULES, integrated_gradients
from lib.runtime.errors import UserError


@pytest.fixture
def ends():
    """An input and a baseline (2, 3)."""
    return torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).double()
    return lambda points: model(points).T[[0, 1, 3]]


class Counted:
    """Scores that note the size of each batch they are given, and whether gradients were on."""

    def __init__(self, scores):
        self.scores = scores
        self.batches = []

    def __call__(self, points):
        self.batches.append((len(points), points.requires_grad))
        return self.scores(points)

    @property
    def gradients(self):
        return sum(size for size, with_gradient in self.batches if with_gradient)


def quadratic(matrix):
    return lambda points: torch.einsum("si,ij,sj->s", points.flatten(1), matrix, points.flatten(1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_a_linear_score_is_exact_by_every_rule_in_any_number_of_steps(rule, steps, ends):
    weight = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    found = integrated_gradients(
        lambda points: (points * weight).sum((1, 2)) + 7, *ends, rule=rule, steps=steps
    )
    torch.testing.assert_close(found.values, weight * (ends[0] - ends[1]), rtol=1e-12, atol=1e-12)
    assert abs(found.gap) < 1e-12
    assert found.steps == steps
    assert found.evaluations == (steps + 1 if rule == "trapezoid" else steps)
    assert math.isnan(found.change)


@pytest.mark.parametrize("rule", RULES)
def test_a_quadratic_score_has_its_closed_form(rule, ends):
    x, baseline = ends
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # The gradient at a point is (M + Mᵀ) p, linear in it, so its mean over the path is that at the middle;
    # on the right, that at α = (n + 1) / 2n.
    steps = 7
    middle = 0.5 if rule != "right" else (steps + 1) / (2 * steps)
    point = torch.lerp(baseline, x, middle).flatten()
    expected = (x - baseline) * ((matrix + matrix.T) @ point).view(2, 3)
    found = integrated_gradients(quadratic(matrix), x, baseline, rule=rule, steps=steps)
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_legendre_is_exact_for_a_polynomial_of_degree_two_n(steps):
    x = torch.tensor([1.5], dtype=torch.float64)
    found = integrated_gradients(
        lambda points: points[:, 0] ** (2 * steps), x, torch.zeros_like(x), rule="gauss-legendre", steps=steps
    )
    torch.testing.assert_close(found.values, x ** (2 * steps), rtol=1e-12, atol=0)


def test_the_midpoint_rules_error_falls_with_the_square_of_the_steps(ends):
    matrix = torch.eye(6, dtype=torch.float64)
    gaps = [
        abs(integrated_gradients(lambda p: quadratic(matrix)(p) ** 2, *ends, steps=steps).gap)
        for steps in (9, 27)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(9, rel=0.02)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "gauss-legendre"])
def test_trebling_comes_to_the_same_as_so_many_steps_at_once_and_takes_no_gradient_twice(rule, ends, network):
    scores = Counted(lambda points: network(points)[2])
    grown = integrated_gradients(scores, *ends, rule=rule, tolerance=1e-3, batch_size=7)
    at_once = integrated_gradients(scores.scores, *ends, rule=rule, steps=grown.steps)
    torch.testing.assert_close(grown.values, at_once.values, rtol=1e-12, atol=1e-12)
    assert grown.steps > 18
    assert scores.gradients == grown.evaluations == at_once.evaluations


def test_a_linear_score_takes_as_many_steps_as_settle_it_the_first_time(ends):
    weight = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    found = integrated_gradients(lambda points: (points * weight).sum((1, 2)) + 7, *ends)
    torch.testing.assert_close(found.values, weight * (ends[0] - ends[1]))
    assert found.steps == 18
    assert abs(found.gap) < 1e-12


def test_the_steps_that_are_added_go_with_those_there_were():
    x, baseline = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)

    def score(points):
        return points[:, 0] ** 6 * points[:, 1]

    found = integrated_gradients(score, x, baseline, tolerance=1e-6, batch_size=5)
    once = integrated_gradients(score, x, baseline, tolerance=2.0)
    assert (found.steps % (3 * once.steps), once.steps) == (0, 18)
    # ∫ 6 (2α)⁵ α 2 dα = 384 / 7 and ∫ (2α)⁶ dα = 64 / 7
    torch.testing.assert_close(
        found.values * 7, torch.tensor([384.0, 64.0], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_steps_grow_until_the_sum_is_right_and_the_values_have_settled(ends, network):
    def one(points):
        return network(points)[1]

    found = integrated_gradients(one, *ends, tolerance=1e-3)
    assert abs(found.gap) <= 1e-3 * abs(found.score - found.baseline_score)
    before = integrated_gradients(one, *ends, steps=found.steps // 3)
    moved = (found.values - before.values).square().sum() / found.values.square().sum()
    assert found.change == pytest.approx(float(moved))
    assert found.change <= 1e-3
    earlier = integrated_gradients(one, *ends, steps=found.steps // 9)
    was = (before.values - earlier.values).square().sum() / before.values.square().sum()
    gap_was_wide = abs(before.gap) > 1e-3 * abs(before.score - before.baseline_score)
    assert gap_was_wide or was > 1e-3 or found.steps == 18


def test_a_sum_that_is_right_while_its_parts_are_not_is_not_taken_for_an_end():
    # In 18 steps both waves are wrong, by errors that cancel.
    x = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)

    def score(points):
        return points[:, 0].sin() + (60 * points[:, 1]).sin() - (60 * points[:, 2]).sin()

    found = integrated_gradients(score, x, torch.zeros_like(x), tolerance=0.01)
    assert found.steps > 18
    torch.testing.assert_close(
        found.values, torch.tensor([1.0, 60.0, -60.0], dtype=torch.float64).sin(), rtol=0.02, atol=0
    )
    assert abs(integrated_gradients(score, x, torch.zeros_like(x), steps=18).gap) < 0.01 * found.score


def test_steps_end_at_the_most_whatever_the_gap(ends):
    def jump(points):
        return points.sum((1, 2)).sigmoid().round() + 0 * points.sum((1, 2))

    assert integrated_gradients(jump, *ends, tolerance=0.0, most_steps=100).steps in (18, 54)
    assert (
        integrated_gradients(lambda p: p.exp().sum((1, 2)), *ends, tolerance=0.0, most_steps=54).steps == 54
    )
    assert integrated_gradients(lambda p: p.exp().sum((1, 2)), *ends, tolerance=0.0, most_steps=1).steps == 18


@pytest.mark.parametrize("options", [{"steps": 11}, {"tolerance": 1e-3}])
def test_many_scores_share_their_passes_and_come_to_the_same_as_each_alone(options, ends, network):
    scores = Counted(network)
    together = integrated_gradients(scores, *ends, **options)
    assert scores.gradients == together.evaluations
    assert together.values.shape == (3, 2, 3)
    assert together.gap.shape == together.score.shape == together.baseline_score.shape == (3,)
    for target in range(3):
        alone = integrated_gradients(lambda p, c=target: network(p)[c], *ends, steps=together.steps)
        torch.testing.assert_close(together.values[target], alone.values)
        assert float(together.score[target]) == pytest.approx(alone.score)
        assert float(together.gap[target]) == pytest.approx(alone.gap, abs=1e-12)
    if "tolerance" in options:
        assert (together.gap.abs() <= 1e-3 * (together.score - together.baseline_score).abs()).all()


def test_no_batch_is_larger_than_asked_for_and_its_size_changes_nothing(ends, network):
    scores = Counted(network)
    small = integrated_gradients(scores, *ends, steps=50, batch_size=8)
    assert max(size for size, _ in scores.batches) == 8
    large = integrated_gradients(network, *ends, steps=50, batch_size=1000)
    torch.testing.assert_close(small.values, large.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_of_the_inputs_dtype_also_where_gradients_are_off(dtype, ends):
    x, baseline = ends.to(dtype)
    with torch.no_grad():
        found = integrated_gradients(lambda p: p.square().sum((1, 2)), x.requires_grad_(), baseline)
    assert found.values.dtype == dtype
    assert not found.values.requires_grad
    assert x.grad is None
    torch.testing.assert_close(found.values, (x.square() - baseline.square()).detach())


def test_the_gap_of_float32_values_is_summed_without_rounding():
    x = torch.ones(1000)
    x[0] = 1e8
    found = integrated_gradients(lambda points: points.double().sum(1), x, torch.zeros(1000), steps=1)
    assert found.gap == 0


def test_an_input_that_is_its_baseline_adds_nothing(ends, network):
    found = integrated_gradients(network, ends[0], ends[0])
    assert not found.values.any()
    assert found.change == 0
    assert found.steps == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "simpson"}, "no rule 'simpson'; choose from midpoint, trapezoid, right, gauss-legendre"),
        ({"rule": "gauss-legendre"}, "gauss-legendre needs a number of steps"),
        ({"steps": 0}, "cannot integrate in 0 steps"),
    ],
)
def test_what_cannot_be_is_said(options, message, ends, network):
    with pytest.raises(UserError, match=message):
        integrated_gradients(network, *ends, **options)


PEAK = """
import resource, sys, torch
from torch import nn
from lib.explain.integrated_gradients import integrated_gradients
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU())
x = torch.rand(3, 224, 224)
scores = lambda points: model(points).mean((2, 3)).T[:3]
integrated_gradients(scores, x, torch.zeros_like(x), steps=int(sys.argv[1]), batch_size=10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(process, tmp_path):
    (tmp_path / "peak.py").write_text(PEAK)
    few, many = (
        int(process(tmp_path / "peak.py", steps, PYTHONPATH=str(ROOT)).stdout) for steps in (10, 300)
    )
    assert many < 1.2 * few


def test_small_images_and_vectors_are_scored_in_batches_of_one_size_and_photographs_in_measured_ones():
    sizes = []

    def scores(points):
        sizes.append(len(points))
        return points.flatten(1).sum(1)

    for shape in ((1, 28, 28), (7,)):
        sizes.clear()
        integrated_gradients(scores, torch.ones(shape), torch.zeros(shape), steps=40)
        assert sizes[1:] == [18, 18, 4]  # behind the two ends of the path
    sizes.clear()
    integrated_gradients(scores, torch.ones(3, 96, 96), torch.zeros(3, 96, 96), steps=40)
    assert sizes[1:4] == [2, 2, 2]


def test_batches_are_halved_when_memory_runs_out():
    x = torch.rand(1, 128, 128, dtype=torch.float64)
    sizes = []

    def tight(points):
        sizes.append(len(points))
        if len(points) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return points.square().flatten(1).sum(1)

    found = integrated_gradients(tight, x, torch.zeros_like(x), steps=12)
    torch.testing.assert_close(found.values, x.square())
    # Behind the two ends of the path, a size is measured twice after a batch to warm up.
    assert sizes[1:] == [2, 2, 2, 4, 2, 2, 2]
