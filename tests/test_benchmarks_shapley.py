"""The benchmarks of Shapley values: estimators of other libraries, games, coverage."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarking import assert_has_table, benchmark, load, rows_of

from benchmarks import shapley_estimators
from benchmarks.shapley_families import FAMILIES, game_of
from lib.explain.coalitions import all_coalitions
from lib.explain.shapley import shapley_weights

# ---- shapley.py


@pytest.fixture(scope="module")
def shapley() -> ModuleType:
    return load("shapley.py")


@pytest.fixture
def game():
    """A game of four players in which each adds his number, whose Shapley values are these numbers."""
    from benchmarks.shapley_games import Game, grid

    truth = torch.arange(4.0, dtype=torch.float64)
    return Game("sums/0", grid(2), lambda coalitions: coalitions.double() @ truth, (truth, truth))


class NewApproximator:
    """As the RegressionMSR of newer versions of shapiq: it will not do without an index."""

    def __init__(self, n: int, index: str, *, pairing_trick: bool = False, random_state: int | None = None):
        assert (index, pairing_trick, random_state) == ("SV", True, 7)
        self.n = n

    def approximate(self, *, budget: int, game) -> dict[tuple[int, ...], float]:
        assert budget == 16
        return {(player,): game(np.eye(self.n))[player] for player in range(self.n)}


class OldApproximator(NewApproximator):
    """As older versions had it: it knows nothing of an index or of pairs."""

    def __init__(self, n: int, random_state: int | None = None):
        super().__init__(n, "SV", pairing_trick=True, random_state=random_state)


@pytest.mark.parametrize("kind", [NewApproximator, OldApproximator])
def test_estimators_of_shapiq_are_given_the_options_that_their_version_takes(kind, game):
    values = shapley_estimators.shapiq_estimator(kind)(game, 16, 7)
    assert values.tolist() == [0, 1, 2, 3]


def test_estimators_that_shapiq_lists_or_brings_besides_take_part(monkeypatch):
    approximator = SimpleNamespace(SV_APPROXIMATORS=[OldApproximator], RegressionMSR=NewApproximator)
    monkeypatch.setitem(sys.modules, "shapiq", SimpleNamespace(approximator=approximator))
    monkeypatch.setitem(sys.modules, "shapiq.approximator", approximator)
    assert set(shapley_estimators.shapiq_estimators()) == {"shapiq OldApproximator", "shapiq NewApproximator"}


def raising(error: Exception):
    def estimate(*_):
        raise error

    return estimate


@pytest.mark.parametrize(
    "estimate",
    [
        raising(TypeError("missing 1 required positional argument: 'index'")),
        raising(ImportError("No module named 'xgboost'")),
        raising(IndexError("index 1 is out of bounds")),
        lambda game, _budget, _seed: np.full(game.n, np.nan),
    ],
)
def test_an_estimator_of_a_library_that_fails_is_left_out_with_one_line(estimate, shapley, game, capsys):
    shapley_estimators.say_once.cache_clear()
    estimators = {"odd-gp": shapley.ours("odd-gp"), "theirs": shapley.forgiving("theirs", estimate, 10.0)}
    rows = shapley.compare("sums", [game, game], estimators, 16, seeds=2)
    assert [row["estimator"] for row in rows] == ["odd-gp"]
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert rows_of("\n".join(shapley.table("sums", rows, [16])))


def test_an_estimator_that_was_too_slow_is_not_asked_again(shapley, game):
    asked = []

    def slow(game, budget: int, _seed: int) -> np.ndarray:
        asked.append(budget)
        return np.zeros(game.n)

    answer = shapley.forgiving("slow", slow, patience=0.0)
    for budget in (16, 32):
        assert shapley.measure(game, answer, budget, seeds=3) is None
    assert asked == [16]


def test_an_error_of_zero_is_not_divided_by(shapley, game):
    exact = shapley.forgiving("exact", lambda *_: game.references[0].numpy(), 10.0)
    rows = shapley.compare("sums", [game], {"odd-gp": shapley.ours("odd-gp"), "exact": exact}, 16, seeds=1)
    cells = rows_of("\n".join(shapley.table("sums", rows, [16])))
    assert ["–" in row[1] for row in cells if "best of the others" in row[0]] == [True]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--evaluations", 2), "28 or more"),
        (("--estimators", "odd-pg"), "there is no estimator"),
        (("--no-digits",), "no games are left"),
        (("--digits", 361), "360"),
        (("--no-digits", "--tables", "nowhere.npy"), "nowhere.npy"),
        (("--no-digits", "--network", "nowhere"), "cifar_net.py"),
    ],
)
def test_games_that_cannot_be_played_are_refused_with_a_line_that_says_why(flags, reason, without, tmp_path):
    without("shap", "shapiq", "captum")
    done = benchmark("shapley.py", "--quick", *flags, folder=tmp_path)
    assert done.status == 2
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_as_few_evaluations_as_odd_gp_takes_are_enough(without, tmp_path):
    without("shap", "shapiq", "captum")
    assert_has_table(benchmark("shapley.py", "--quick", "--evaluations", 5, 28, 600, folder=tmp_path))


def test_games_in_files_are_played(without, tmp_path):
    without("shap", "shapiq", "captum")
    np.save(tmp_path / "own_0.npy", np.random.default_rng(0).normal(size=(2, 16)))
    flags = ("--quick", "--no-digits", "--tables", "own_0.npy", "--evaluations", 12, "--promises")
    done = benchmark("shapley.py", *flags, folder=tmp_path)
    assert_has_table(done)
    assert "own, 4 players" in done.stdout


# ---- shapley_coverage.py


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shapley_values_of_every_family_are_those_of_enumeration(family):
    coalitions = all_coalitions(9)
    for number in range(4):
        game = game_of(family, 3, number)
        truth = shapley_weights(coalitions).T @ game.value(coalitions)
        assert torch.allclose(game.references[0], truth, rtol=0, atol=1e-12)


def test_coverage_of_games_in_files_is_measured_too(tmp_path):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(2, 16)))
    flags = ("--quick", "--families", "additive", "--tables", "own.npy", "--table-evaluations", 12)
    done = benchmark("shapley_coverage.py", *flags, folder=tmp_path)
    assert_has_table(done)
    assert [row[0].strip() for row in rows_of(done.stdout) if row[0]] == ["additive", "own"]


@pytest.mark.parametrize("flags", [("--side", 3, "--a-player", 60), ("--families", "unknown")])
def test_coverage_that_cannot_be_measured_is_refused_in_one_line(flags, tmp_path):
    done = benchmark("shapley_coverage.py", "--quick", *flags, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()
