"""plot-log.py: what it draws of a log, what it says of a bad one, what it leaves on the disk."""

import io
import math
import os
import runpy
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from lib.figures import curves, style
from lib.figures.curves import Curve, draw_curves
from lib.runtime.errors import RunFailed, UserError
from lib.runtime.runlog import Run, RunLog

ROOT = Path(__file__).parent.parent
script = types.SimpleNamespace(**runpy.run_path(str(ROOT / "plot-log.py")))


def log_text(run=None, steps=(10, 20, 30, 40), accuracy=True, losses=None, **flags) -> str:
    """Return a log of TRAIN lines at `steps`, and VALID lines at every other of them."""
    stream = io.StringIO()
    log = RunLog("train", stream=stream)
    if run:
        log.event("RUN", id=run, **flags)
    for i, step in enumerate(steps):
        loss = losses[i] if losses else 1 / step
        log.event("TRAIN", Epoch=i // 2, Step=step, Training_loss=loss)
        if i % 2:
            more = {"Valid_accuracy": 1 - loss} if accuracy else {"Valid_KL/divergence": 3.0}
            log.event("VALID", Epoch=i // 2, Step=step, Valid_loss=loss, **more)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(monkeypatch):
    """Keep the curves of each picture, by quantity, and write a few bytes in its stead."""
    kept = {}

    def keep(curves, quantity, **options):
        kept[quantity] = (list(curves), options)

    def write(figure, path, *, show):  # noqa: ARG001
        Path(path).write_bytes(b"picture")
        return path

    monkeypatch.setattr(curves, "draw_curves", keep)
    monkeypatch.setattr(style, "save", write)
    return kept


def plot(*flags) -> None:
    script.main([str(flag) for flag in flags])


def names() -> list[str]:
    return sorted(path.name for path in Path("imgs").iterdir())


def test_a_log_becomes_three_pictures_and_their_paths_are_printed(capsys):
    Path("mnist.log").write_text(log_text("a"))
    plot("--log-file", "mnist.log")
    out, err = capsys.readouterr()
    assert out.split() == [f"imgs/mnist-{name}.png" for name in ("train-loss", "valid-loss", "valid-acc")]
    assert names() == sorted(Path(path).name for path in out.split())
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in out.split())
    assert err == ""


def test_a_log_without_accuracy_says_so_and_other_measurements_get_their_picture(pictures, capsys):
    Path("vae.log").write_text(log_text("a", accuracy=False))
    plot("--log-file", "vae.log", "--prefix", "v", "--format", "svg")
    assert names() == ["v-train-loss.svg", "v-valid-kl-divergence.svg", "v-valid-loss.svg"]
    assert capsys.readouterr().err == "warning: no Valid_accuracy to draw: imgs/v-valid-acc.svg is not made\n"
    assert pictures["Validation KL/divergence"][1]["best"] is None


def test_the_best_of_a_loss_is_its_least_and_of_an_accuracy_its_greatest(pictures):
    Path("a.log").write_text(log_text("a"))
    plot("--log-file", "a.log", "--log-scale")
    options = {quantity: options for quantity, (_, options) in pictures.items()}
    assert [options[q]["best"] for q in ("Training loss", "Validation loss", "Validation accuracy")] == [
        None,
        "min",
        "max",
    ]
    assert [options[q]["log_scale"] for q in ("Validation loss", "Validation accuracy")] == [True, False]


@pytest.mark.parametrize(
    ("run", "labels"),
    [
        ("newest", ["runs"]),
        ("all", ["one, learning_rate=0.1", "two, learning_rate=0.2"]),
        ("one", ["runs"]),
    ],
)
def test_of_several_runs_the_newest_all_or_a_named_one_is_drawn(pictures, run, labels):
    Path("runs.log").write_text(
        log_text("one", learning_rate=0.1) + log_text("two", steps=(1, 2), learning_rate=0.2)
    )
    plot("--log-file", "runs.log", "--run", run)
    drawn, _ = pictures["Training loss"]
    assert [curve.label for curve in drawn] == labels
    assert len(drawn[0].xs) == (2 if run == "newest" else 4)


def test_overlaid_logs_are_told_apart_by_name_and_by_the_flags_that_differ(pictures):
    Path("x").mkdir()
    for file, flags in {"a.log": {"model": "cnn"}, "b.log": {"model": "lstm"}}.items():
        Path(file).write_text(log_text(file, dataset="mnist", checkpoint_dir=file, **flags))
    Path("x/a.log").write_text(log_text("c", dataset="mnist", model="cnn"))
    plot("--log-file", "a.log", "b.log", "a.log")
    assert [curve.label for curve in pictures["Training loss"][0]] == ["a, model=cnn", "b, model=lstm"]
    plot("--log-file", "a.log", "x/a.log")
    assert [curve.label for curve in pictures["Training loss"][0]] == ["a.log", "x/a.log"]


def test_a_log_is_read_from_standard_input(pictures, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log_text("a").encode())))
    plot("--log-file", "-")
    assert "standard-input-train-loss.png" in names()
    assert len(pictures["Training loss"][0][0].xs) == 4


def test_epochs_are_counted_in_fractions(pictures):
    Path("a.log").write_text(log_text("a"))
    plot("--log-file", "a.log", "--x", "epoch")
    assert pictures["Training loss"][0][0].xs.tolist() == [0.5, 1, 1.5, 2]


def test_nan_foreign_and_half_written_lines_are_counted_in_one_warning(pictures, capsys):
    text = log_text("a", losses=[math.nan, 0.5, math.inf, 0.25])
    Path("a.log").write_bytes(
        b"\xff\xfe tqdm 10%\n" + text.encode() + b"2025-01-31 12:00:00,123 - t - INFO - [TRA"
    )
    plot("--log-file", "a.log")
    assert capsys.readouterr().err == (
        "warning: passed over 2 foreign or half-written lines, "
        "2 values that cannot be drawn (nan, infinite, or not positive on a log scale)\n"
    )
    assert len(pictures) == 3


VALID_ONLY = "".join(line for line in log_text("a").splitlines(True) if "[TRAIN]" not in line)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing.log"], "there is no file missing.log"),
        (["."], "is a folder"),
        (["empty.log"], "empty.log is empty"),
        (["foreign.log"], r"foreign.log has no \[TRAIN\] lines"),
        (["valid.log"], r"valid.log has no \[TRAIN\] lines"),
        (["nan.log"], "no value that can be drawn"),
        (["good.log", "--run", "b"], r"no run 'b'; there are a \(and newest, all\)"),
        (["good.log", "--out-dir", "good.log"], "cannot write to the folder good.log"),
        (["good.log", "--prefix", "a/b"], "--out-dir"),
        (["old.log", "--x", "epoch"], "leave out --x epoch"),
        (["good.log", "--smooth", "101"], "at most 100"),
        (["good.log", "--format", "gif"], "invalid choice"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_picture(flags, message):
    for name, text in {
        "empty": "",
        "foreign": "hello\n",
        "valid": VALID_ONLY,
        "nan": "[TRAIN] Step=1 Training_loss=nan\n",
        "good": log_text("a"),
        "old": "[TRAIN] Step=1 Training_loss=1\n",
    }.items():
        Path(f"{name}.log").write_text(text)
    with pytest.raises(UserError, match=message):
        plot("--log-file", *flags)
    assert not Path("imgs").exists() or not names()


def test_help_does_not_wait_for_matplotlib():
    code = f"import runpy, sys; runpy.run_path({str(ROOT / 'plot-log.py')!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "matplotlib", "numpy"} & set(done.stdout.split())


def test_the_largest_log_is_drawn_in_seconds():
    points = 200_000
    curve = Curve("big", np.arange(points), np.random.default_rng(0).random(points))
    started = time.perf_counter()
    figure = draw_curves([curve], "Training loss", smooth=4)
    style.save(figure, "big.svg")
    assert time.perf_counter() - started < 10
    assert Path("big.svg").stat().st_size < 1_000_000


def lines_of(figure) -> list[np.ndarray]:
    return [line.get_xydata() for line in figure.axes[0].lines]


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_running_mean_of_a_line_is_that_line():
    xs = np.arange(1000.0)
    raw, mean = lines_of(draw_curves([Curve("a", xs, 3 * xs + 1)], "Training loss", smooth=4))
    inside = slice(40, -40)  # at the ends the window has more points on one side
    np.testing.assert_allclose(mean[inside], raw[inside])


def test_a_huge_loss_is_gone_from_the_mean_once_the_window_has_passed_it():
    ys = np.ones(1000)
    ys[100] = 1e30
    _, mean = lines_of(draw_curves([Curve("a", np.arange(1000.0), ys)], "Training loss", smooth=4))
    assert (mean[200:, 1] == 1).all()


def test_thinning_keeps_the_highest_and_the_lowest_point():
    ys = np.random.default_rng(0).normal(size=100_000)
    ys[500:600] = np.nan
    ((*_, thin),) = [lines_of(draw_curves([Curve("a", np.arange(1e5), ys)], "x"))]
    assert len(thin) <= 4000
    assert (np.nanmin(thin[:, 1]), np.nanmax(thin[:, 1])) == (np.nanmin(ys), np.nanmax(ys))


def test_the_best_point_has_a_star_and_stands_in_the_legend():
    curve = Curve("a", np.array([10, 20, 30]), np.array([math.nan, 0.25, 0.5]))
    for best, point in {"min": (20, 0.25), "max": (30, 0.5)}.items():
        figure = draw_curves([curve], "Validation loss", best=best)
        assert lines_of(figure)[1].tolist() == [list(point)]
        assert legend_of(figure) == [f"a (★ best {point[1]} at step {point[0]})"]


def test_few_points_have_markers_and_many_have_none():
    def marker(points):
        figure = draw_curves([Curve("a", np.arange(points), np.ones(points))], "x")
        return figure.axes[0].lines[0].get_marker()

    assert (marker(1), marker(41)) == ("o", "None")


def test_a_run_keeps_its_colour_in_pictures_where_another_has_nothing():
    here = Curve("here", np.array([1.0]), np.array([1.0]))
    gone = Curve("gone", np.array([]), np.array([]))
    figure = draw_curves([gone, here], "Validation accuracy", best="max")
    assert figure.axes[0].lines[0].get_color() == style.PALETTE[1]
    assert len(legend_of(figure)) == 1


@pytest.mark.parametrize("runs", [1, 5, 12])
def test_the_legend_covers_no_axes_and_nothing_is_cut(runs):
    label = "a-rather-long-name-of-an-experiment-with-$dollars$-and-more, " * 3
    drawn = [Curve(f"{label}{i}", np.arange(3.0), np.arange(3.0) + i) for i in range(runs)]
    figure = draw_curves(drawn, "Validation loss", best="min")
    figure.draw_without_rendering()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert legend.y1 <= axes.y0
    assert figure.axes[0].get_window_extent().height > 2 * figure.dpi  # inches


def test_values_beyond_all_bounds_are_left_out():
    curve = Curve("a", np.array([1, 2, 3, 4, 1e300]), np.array([1e308, -math.inf, 0.0, 5.0, 1.0]))
    assert curve.drawable().tolist() == [False, False, True, True, False]
    assert curve.drawable(log_scale=True).tolist() == [False, False, False, True, False]
    style.save(draw_curves([curve], "x", log_scale=True), "x.png")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_values_give_the_same_bytes(suffix):
    paths = [
        style.save(draw_curves([Curve("a", np.arange(3), np.arange(3))], "x"), f"{name}.{suffix}")
        for name in "ab"
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_picture_that_cannot_be_finished_leaves_the_old_one_alone(monkeypatch):
    Path("x.png").write_bytes(b"old")

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    figure = draw_curves([Curve("a", np.arange(3), np.arange(3))], "x")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunFailed, match=r"could not save x\.png: No space left on device"):
        style.save(figure, "x.png")
    assert [(path.name, path.read_bytes()) for path in Path().iterdir()] == [("x.png", b"old")]


def test_a_suffix_that_is_no_picture_is_the_users_mistake():
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        style.save(draw_curves([Curve("a", np.arange(3), np.arange(3))], "x"), "x.txt")


def test_styles_of_classes_differ_and_eight_need_no_markers():
    assert len(set(style.class_styles(104))) == 104
    assert {marker for _, marker in style.class_styles(8)} == {"o"}
    assert style.class_styles(0) == []


@pytest.mark.skipif("DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ, reason="would open a window")
def test_without_a_display_show_says_so_and_the_picture_is_written(capsys):
    style._say_no_display.cache_clear()
    path = style.save(draw_curves([Curve("a", np.arange(3), np.arange(3))], "x"), "x.png", show=True)
    assert path.exists()
    assert "no display" in capsys.readouterr().err


def test_labels_of_runs_without_flags_are_their_ids():
    assert script.labels([("x.log", Run("run 1")), ("x.log", Run("run 2"))]) == ["run 1", "run 2"]


def test_a_log_that_tells_no_flags_makes_none_telling():
    runs = [Run("a", {"model": "cnn"}), Run("run 1"), Run("b", {"model": "cnn", "amp": True})]
    assert script.telling_keys(runs) == ["amp"]
