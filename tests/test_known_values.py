"""Evaluations that an earlier run has paid for: all are used again, whatever the budget and the estimator."""

import pytest
import torch
from test_shapley import grid, polynomial

from lib.explain import coalitions as draw
from lib.explain.games import Evaluation
from lib.explain.shapley import ESTIMATORS, Plan
from lib.tasks.evaluation_store import EvaluationStore

GAME, POSITIONS = polynomial(9, 3), grid(3)


def estimate(path, name: str, budget: int, seed: int = 42):
    """Return an estimate with a store of values, and the number of those that were reused."""
    store = EvaluationStore(path, "game", (9, 1))
    evaluation = Evaluation(GAME, record=store)
    found = ESTIMATORS[name](evaluation, POSITIONS, Plan(budget, seed=seed, known=store.coalitions()))
    store.save()
    return found, evaluation.reused


@pytest.mark.parametrize("name", ["odd-gp", "permutation", "per-patch", "exact"])
@pytest.mark.parametrize(("before", "after"), [(40, 120), (60, 60), (200, 512)])
def test_a_larger_budget_uses_all_evaluations_of_a_smaller_one(tmp_path, name, before, after):
    first, _ = estimate(tmp_path / "paid.npz", name, before)
    second, reused = estimate(tmp_path / "paid.npz", name, after)
    distinct = len(torch.unique(first.coalitions, dim=0))
    assert reused >= distinct
    assert second.evaluations >= first.evaluations
    if name in ("odd-gp", "exact"):  # which ask about no coalition twice
        assert reused == first.evaluations
        assert len(torch.unique(second.coalitions, dim=0)) == second.evaluations


@pytest.mark.parametrize("after", ["odd-gp", "exact"])
@pytest.mark.parametrize("before", ["odd-gp", "permutation", "exact"])
def test_what_another_estimator_or_seed_has_paid_for_is_used(tmp_path, before, after):
    first, _ = estimate(tmp_path / "paid.npz", before, 100, seed=1)
    distinct = len(torch.unique(first.coalitions, dim=0))
    _, reused = estimate(tmp_path / "paid.npz", after, 512, seed=2)
    assert reused == distinct


def test_a_run_that_goes_on_ends_at_the_same_digits(tmp_path):
    whole = ESTIMATORS["odd-gp"](GAME, POSITIONS, Plan(120))
    store = EvaluationStore(tmp_path / "paid.npz", "game", (9, 1))
    store.add(whole.coalitions[:50], whole.outcomes[:50])
    store.save()
    again, reused = estimate(tmp_path / "paid.npz", "odd-gp", 120)
    assert reused == 50
    assert torch.equal(again.values, whole.values)


def test_estimates_with_known_pairs_are_as_good_as_without(tmp_path):
    truth = ESTIMATORS["exact"](GAME, POSITIONS, Plan(512)).values
    estimate(tmp_path / "paid.npz", "odd-gp", 60)
    with_known, _ = estimate(tmp_path / "paid.npz", "odd-gp", 200)
    within = (with_known.values - truth).abs() <= 3 * with_known.standard_errors + 1e-9
    assert within.all()


def test_the_budget_is_kept_where_more_is_known(tmp_path):
    estimate(tmp_path / "paid.npz", "odd-gp", 200)
    smaller, reused = estimate(tmp_path / "paid.npz", "odd-gp", 60, seed=3)
    assert smaller.evaluations == reused == 60


@pytest.mark.parametrize("players", [1, 7, 8, 9, 64])
def test_a_store_gives_back_its_coalitions_in_their_order(tmp_path, players):
    asked = torch.rand(20, players, generator=draw.generator_of(0)) > 0.5
    store = EvaluationStore(tmp_path / "paid.npz", "game", (players, 1))
    store.add(asked, torch.zeros(20, 1).double())
    store.save()
    kept = EvaluationStore(tmp_path / "paid.npz", "game", (players, 1)).coalitions()
    order = dict.fromkeys(map(tuple, asked.tolist()))
    assert list(map(tuple, kept.tolist())) == list(order)
    assert EvaluationStore(tmp_path / "none.npz", "game", (players, 1)).coalitions().shape == (0, players)
