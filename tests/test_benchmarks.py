"""The benchmarks run: their quick forms whole, and what once broke them by itself."""

import resource
from types import SimpleNamespace

import pytest
import torch
from benchmarking import FOLDER, assert_has_table, benchmark, load

from benchmarks import common
from lib import cli
from lib.data import images
from lib.runtime.errors import RunFailed, UserError

SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in path.read_text())
QUICK_SECONDS = 20
# on_gpu.py trains and explains in one: its parts have tests of their own; run_all.py runs the others.
LONG = dict.fromkeys(("on_gpu.py", "run_all.py"), pytest.mark.long)


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
    others = {"shapley_estimators.py", "shapley_families.py", "shapley_games.py"}
    assert helpers == {"common.py", "epochs.py", *others}


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
    tutorial = load("mnist_training.py").epochs.TutorialImages(split)
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


# ---- explanation_measures.py


def test_measures_have_nothing_to_be_compared_with_if_no_peer_is_installed(without, tmp_path):
    without("captum", "quantus")
    done = benchmark("explanation_measures.py", "--quick", folder=tmp_path)
    assert done.status == 1
    assert "captum" in done.stderr.splitlines()[-1]


def test_a_measure_that_differs_from_that_of_a_peer_fails_the_benchmark():
    compare = load("explanation_measures.py").compare
    assert compare("rank", lambda: [0.5, 0.0], "Peer", lambda: [0.5, 0.0], 1)["difference"] == 0
    for other in ([0.5, 0.001], [0.501, 0.0], [float("nan"), 0.0]):
        with pytest.raises(RunFailed, match="rank"):
            compare("rank", lambda: [0.5, 0.0], "Peer", lambda other=other: other, 1)


# ---- run_all.py


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """Run all benchmarks, which answer at once; return the file of the tables."""
    module = load("run_all.py")

    def answer(script, flags):
        status = int("--fail" in flags)
        output = (
            f"| {script} |\n|---|\n## not a heading of ours" if script == "shapley.py" else f"| {script} |"
        )
        common_fields = {"script": script, "flags": flags, "seconds": 1.2}
        return {**common_fields, "status": status, "output": output, "error": "run_all.py: no GPU"}

    monkeypatch.setattr(module, "run", answer)

    def run(*argv):
        module.main([*argv, "--out", str(tmp_path / "tables.md")])
        return (tmp_path / "tables.md").read_text()

    return run


def test_a_benchmark_that_runs_again_replaces_its_section_and_no_other(run_all):
    first = run_all("--only", "vae_training.py", "frozen_trunk.py")
    assert [line for line in first.splitlines() if line[:3] == "## "] == [
        "## frozen_trunk.py",
        "## vae_training.py",
    ]
    second = run_all("--only", "vae_training.py", "--threads", "2")
    assert second == first.replace(
        "`python3 benchmarks/vae_training.py --threads 1`", "`python3 benchmarks/vae_training.py --threads 2`"
    )


def test_every_benchmark_has_a_section_and_running_all_again_writes_the_same_file(run_all):
    first = run_all()
    for script in SCRIPTS:
        assert (f"\n## {script}\n" in first) == (script != "run_all.py")
    assert run_all() == first


def test_a_benchmark_gets_flags_of_its_own_and_one_that_fails_says_why(run_all):
    text = run_all("--only", "on_gpu.py", "vae_training.py", "--with", "on_gpu.py --fail 'a b'")
    assert "`python3 benchmarks/on_gpu.py --threads 1 --fail 'a b'`" in text
    assert "Not measured: run_all.py: no GPU\n" in text
    assert "`python3 benchmarks/vae_training.py --threads 1`" in text


@pytest.mark.parametrize("text", ["", "nothing.py --quick", "'on_gpu.py"])
def test_flags_for_no_benchmark_are_refused(run_all, text):
    with pytest.raises(UserError, match="does not begin with the name of a benchmark"):
        run_all("--with", text)


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


def test_parsers_of_the_benchmarks_are_those_of_the_scripts():
    for script in SCRIPTS:
        assert isinstance(load(script).make_parser(), cli.Parser)
