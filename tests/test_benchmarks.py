"""The benchmarks run: their quick forms whole, and what once broke them by itself."""

import importlib.util
import re
import resource
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, Ended, call

from benchmarks import common, shapley_estimators
from benchmarks.shapley_families import FAMILIES, game_of
from lib import cli
from lib.data import images
from lib.explain.coalitions import all_coalitions
from lib.explain.shapley import shapley_weights

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in path.read_text())
QUICK_SECONDS = 20
# on_gpu.py trains and explains in one: its parts have tests of their own; run_all.py runs the others.
LONG = dict.fromkeys(("on_gpu.py", "run_all.py"), pytest.mark.long)


def load(script: str) -> ModuleType:
    """Return a benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(script).stem}", FOLDER / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def rows_of(markdown: str) -> list[list[str]]:
    """Return the cells of every row of the tables in a text, their heads left out."""
    tables = re.findall(r"^\|.*\|\s*\n\|(?:[-:]+\|)+\n((?:\|.*\|\s*(?:\n|$))+)", markdown, re.MULTILINE)
    return [line.strip().strip("|").split("|") for table in tables for line in table.splitlines()]


def assert_has_table(done: Ended) -> None:
    assert done.status == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows, f"no table in {done.stdout!r}"
    cells = [cell for row in rows for cell in row[1:]]
    assert not re.search(r"\b(nan|inf)\b", " ".join(cells))
    assert sum(bool(re.search(r"\d", cell)) for cell in cells) >= 2


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""

    def hide(*packages: str) -> None:
        common.is_installed.cache_clear()
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    yield hide
    common.is_installed.cache_clear()


def benchmark(script: str, *flags, folder: Path) -> Ended:
    return call(f"benchmarks/{script}", *flags, folder=folder)


@pytest.mark.parametrize(
    "script", [pytest.param(each, marks=LONG.get(each, pytest.mark.slow)) for each in SCRIPTS]
)
def test_the_quick_form_of_every_benchmark_prints_a_table_in_time_and_offline(script, process, tmp_path):
    # A download would meet a port at which nobody listens.
    nobody = "http://127.0.0.1:9"
    offline = {
        "http_proxy": nobody,
        "https_proxy": nobody,
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(tmp_path),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = process(f"benchmarks/{script}", "--quick", "--json", "numbers.json", timeout=300, **offline)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert_has_table(done)
    assert "NaN" not in (tmp_path / "numbers.json").read_text()
    # Of the processor's time: on a busy machine the clock on the wall says nothing about the benchmark.
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert used < QUICK_SECONDS


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_ends_in_one_line(script, tmp_path):
    done = benchmark(script, "--no-such-flag", folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_says_in_help_what_it_is_for(script):
    for action in load(script).make_parser()._actions:
        assert action.help, f"{script} {action.option_strings}"


def test_helpers_of_the_benchmarks_are_not_taken_for_scripts():
    helpers = {path.name for path in FOLDER.glob("*.py")} - set(SCRIPTS)
    assert helpers == {"common.py", "shapley_estimators.py", "shapley_families.py", "shapley_games.py"}


def test_typed_flags_prevail_over_those_of_quick_and_these_over_the_defaults():
    parser = common.make_parser("some.py", "Some.", repetitions=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=160)
    quick = {"size": 64, "images": 8, "repetitions": 1}
    assert common.settle(parser, [], quick).size == 224
    settled = common.settle(parser, ["--quick", "--images", "9"], quick)
    assert (settled.size, settled.images, settled.repetitions) == (64, 9, 1)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    done = benchmark("lstm_training.py", "--quick", "--json", "file/numbers.json", folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()
    assert not done.stdout


# ---- mnist_training.py


def test_the_tutorial_and_this_project_train_on_the_same_images():
    split = images.load("digits", "data").train
    tutorial = load("mnist_training.py").TutorialImages(split)
    assert len(tutorial) == len(split.labels)
    for number in (0, 1, 1436):
        pixels, label = tutorial[number]
        assert label == split.labels[number]
        torch.testing.assert_close(pixels, split.images[number], atol=0.5 / 255 + 1e-6, rtol=0)


def test_one_repetition_with_batches_larger_than_the_data_is_timed(tmp_path):
    flags = ("--quick", "--limit", 20, "--batch-size", 2, 1000, "--repeats", 1)
    assert_has_table(benchmark("mnist_training.py", *flags, folder=tmp_path))


# ---- frozen_trunk.py


@pytest.mark.parametrize(
    "flags",
    [
        ("--network", "mobilenet_v2"),
        ("--network", "lenet5", "--size", 32),
        ("--images", 2, "--batch-size", 2),
        ("--images", 3, "--batch-size", 2, "--repeats", 1),
    ],
)
def test_the_head_of_other_networks_is_timed_too(flags, tmp_path):
    assert_has_table(benchmark("frozen_trunk.py", "--quick", *flags, folder=tmp_path))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--network", "squeezenet1_0"), "not a linear layer"),
        (("--network", "alexnet", "--size", 32), "does not take images of 32 px"),
        (("--network", "mnist-classifier"), "1 channel"),
        (("--network", "resnet81"), "there is no network"),
    ],
)
def test_a_network_without_features_to_keep_is_refused_in_one_line(flags, reason, tmp_path):
    done = benchmark("frozen_trunk.py", "--quick", *flags, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()
    assert reason in done.stderr


def test_two_starts_on_a_folder_are_timed(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the benchmark sets it, and leaves it so
    for number in range(40):
        file = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(file)
    done = benchmark("frozen_trunk.py", "--quick", "--data-dir", "photographs", folder=tmp_path)
    assert_has_table(done)
    assert "start on a folder of 40 images" in done.stdout


# ---- gradient_explanations.py


def test_gradient_explanations_leave_out_libraries_that_are_missing(without, tmp_path):
    without("captum", "pytorch_grad_cam")
    done = benchmark("gradient_explanations.py", "--quick", "time", "completeness", folder=tmp_path)
    assert_has_table(done)
    assert len(done.stderr.splitlines()) == 2


def test_an_unknown_section_is_refused(tmp_path):
    done = benchmark("gradient_explanations.py", "--quick", "speed", folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()


# ---- shapley_throughput.py


@pytest.mark.parametrize(("count", "size"), [(1, 8), (3, 64), (64, 64), (70, 64), (512, 16)])
def test_the_bare_loop_sends_exactly_so_many_images_through_the_network(count, size):
    sent = []

    def logits(batch: torch.Tensor) -> torch.Tensor:
        sent.append(len(batch))
        return batch

    game = SimpleNamespace(image=torch.zeros(3, 2, 2), logits=logits)
    load("shapley_throughput.py").bare_loop(game, count, size)()
    assert sum(sent) == count
    assert max(sent) <= size


@pytest.mark.slow
def test_few_evaluations_of_few_players_are_timed(tmp_path):
    flags = ("--quick", "--count", 1, "--contexts", 1, "-lp", 75, "--reference", 2)
    assert_has_table(benchmark("shapley_throughput.py", *flags, folder=tmp_path))


def test_throughput_without_captum_leaves_its_cells_empty(without, tmp_path):
    without("captum")
    flags = ("--quick", "--count", 5, "--contexts", 0, "-lp", 112)
    done = benchmark("shapley_throughput.py", *flags, folder=tmp_path)
    assert_has_table(done)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("flags", [("-lp", 224), ("--device", "nowhere"), ("--count", 0)])
def test_throughput_refuses_what_cannot_be_timed_in_one_line(flags, tmp_path):
    done = benchmark("shapley_throughput.py", "--quick", *flags, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()


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


def test_parsers_of_the_benchmarks_are_those_of_the_scripts():
    for script in SCRIPTS:
        assert isinstance(load(script).make_parser(), cli.Parser)
