"""run-segmentation.py: training, evaluation, prediction, errors, and several ranks."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, call, environment, table
from PIL import Image
from test_segmentation_data import labelled, write_pair

from lib.figures import segmentation as segmentation_pictures
from lib.runtime import checkpoint, runlog

SCRIPT = "run-segmentation.py"
SHAPES = ("--dataset", "shapes", "--limit", "48", "--width", "4", "--threads", "1")
BEST = "ckpts/small-shapes/checkpoint_best.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on the shapes. Tests may read its folder, but not write to it."""
    folder = tmp_path_factory.mktemp("shapes")
    return folder, call(SCRIPT, *SHAPES, "--max-epoch", "2", folder=folder)


def test_a_run_logs_the_metrics_of_each_split_and_the_majority(trained):
    _, ended = trained
    assert (ended.status, ended.stderr) == (0, "")
    run = ended.run()
    valid = run.events["VALID"][-1]
    names = {"Valid_loss", "Valid_accuracy", "Valid_class_accuracy", "Valid_miou", "Valid_absent"}
    assert names <= valid.keys()
    assert len(run.events["EVAL"]) == len(run.events["TEST"]) == 1
    assert run.events["MAJORITY"][0]["Valid_miou"] == pytest.approx(0.2032, abs=1e-4)
    assert "triangle" in ended.stdout


def test_the_best_checkpoint_has_the_best_mean_iou(trained):
    folder, ended = trained
    saved = checkpoint.load(folder / BEST, task="segmentation")
    assert saved["metrics"]["miou"] == pytest.approx(
        max(event["Valid_miou"] for event in ended.run().events["VALID"]), abs=1e-5
    )
    assert (saved["classes"], saved["ignore"]) == (["background", "circle", "square", "triangle"], 255)
    assert saved["preprocessing"]["native"] == 1
    assert saved["flags"]["size"] == 80


def test_an_evaluation_repeats_the_metrics_and_draws(trained, tmp_path):
    folder, ended = trained
    flags = ("--eval-only", "--restore-file", folder / BEST, "--pictures", "2", "--out-dir", tmp_path)
    done = call(SCRIPT, *flags, "--threads", "1", folder=tmp_path)
    assert done.status == 0, done.stderr
    ours, theirs = (each.run().events["EVAL"][0] for each in (done, ended))
    assert ours["Valid_miou"] == theirs["Valid_miou"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"segments-shapes.png", "confusion-shapes.png"}


def test_a_prediction_is_a_mask_in_the_size_of_the_image(trained, tmp_path):
    folder, _ = trained
    noise = np.random.default_rng(0).integers(0, 256, (47, 91, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "street.png")
    flags = ("--predict-only", "--restore-file", folder / BEST, "--input", "street.png", "--out-dir", "out")
    done = call(SCRIPT, *flags, folder=tmp_path)
    assert done.status == 0, done.stderr
    with Image.open(tmp_path / "out" / "street-mask.png") as image:
        mask = np.asarray(image)
    assert mask.shape == (47, 91)
    (row,) = table(done.stdout)
    share = [float(row[name]) for name in ("background", "circle", "square", "triangle")]
    assert share == pytest.approx(np.bincount(mask.ravel(), minlength=4) / mask.size, abs=1e-6)
    with Image.open(tmp_path / "out" / "street-overlay.png") as image:
        shown = np.asarray(image)
    assert shown.shape[1:] == (420, 3)  # as wide as the legend, which is below
    assert shown.shape[0] >= 47 + 20
    assert (shown[:47, 91:] == 255).all()
    colours = segmentation_pictures.palette(4)
    legend = {tuple(colour) for colour in shown[47:].reshape(-1, 3)}
    assert {label for label in range(4) if tuple(colours[label]) in legend} == set(np.unique(mask))


def test_the_validation_split_is_predicted_without_inputs(trained, tmp_path):
    folder, _ = trained
    flags = ("--predict-only", "--restore-file", folder / BEST, "--out-file", "p.tsv", "--out-dir", "out")
    assert call(SCRIPT, *flags, folder=tmp_path).status == 0
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 81
    assert len(list((tmp_path / "out").iterdir())) == 160


def test_a_folder_with_an_encoder_is_trained_from_weights_in_a_file(tmp_path):
    from torchvision import models as theirs

    for number in range(6):
        write_pair(tmp_path / "data", f"i{number}", labelled(0, 1, 255, shape=(70, 80)))
    torch.save(theirs.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.pt")
    flags = ("--dataset", "folder", "--data-dir", "data", "--model", "fcn8", "--encoder", "squeezenet1_1")
    more = ("--weights", "w.pt", "--max-epoch", "1", "-bs", "2", "--threads", "1", "--test-views", "2")
    done = call(SCRIPT, *flags, *more, folder=tmp_path)
    assert done.status == 0, done.stderr
    assert done.run().events["EVAL"][0]["Images"] == 1
    again = call(SCRIPT, *flags, *more, "--resume", folder=tmp_path)
    assert again.status == 0, again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "camvid", "--data-dir", "nowhere"), "there is no CamVid in nowhere"),
        (("--dataset", "shapes", "--classes", "a,b"), "--classes goes with --dataset folder alone"),
        (("--dataset", "shapes", "--weights", "w.pt", "--width", "4"), "encoder, which small does not have"),
        (("--dataset", "shapes", "--encoder", "vgg16"), "--encoder goes with fcn32, fcn16, fcn8 alone"),
        (("--dataset", "shapes", "--model", "fcn8", "--width", "8"), "--width goes with small alone"),
        (("--dataset", "shapes", "--augment", "turn"), "'turn' is none of crop, flip, scale, color"),
        (("--predict-only", "--restore-file", "x.pt", "--input", "none.png"), "none.png"),
    ],
)
def test_an_error_is_one_line(tmp_path, flags, message):
    done = call(SCRIPT, *flags, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error(), done.stderr
    assert message in done.stderr


def test_a_checkpoint_does_not_evaluate_on_other_classes(trained, tmp_path):
    folder, _ = trained
    for number in range(3):
        write_pair(tmp_path / "data", f"i{number}", labelled(0, 1))
    flags = ("--eval-only", "--restore-file", folder / BEST, "--dataset", "folder", "--data-dir", "data")
    done = call(SCRIPT, *flags, "--limit", "2", folder=tmp_path)
    assert done.status == 2
    assert "4 classes apart" in done.stderr


def test_curves_of_every_metric_are_drawn(trained, tmp_path):
    (tmp_path / "seg.log").write_text(trained[1].stdout)
    done = call("plot-log.py", "--log-file", "seg.log", "--out-dir", ".", folder=tmp_path)
    assert done.status == 0, done.stderr
    assert (tmp_path / "seg-valid-miou.png").exists()


@pytest.mark.long
def test_two_ranks_give_the_metrics_of_one(trained, tmp_path):
    import subprocess

    folder, _ = trained
    flags = (
        "--eval-only",
        "--restore-file",
        str(folder / BEST),
        "--threads",
        "1",
        "--out-dir",
        str(tmp_path),
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29677",
         str(ROOT / SCRIPT), *flags],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = runlog.parse(done.stdout.splitlines(keepends=True)).runs[-1].events
    one = call(SCRIPT, *flags, folder=tmp_path).run().events
    for tag in ("EVAL", "TEST", "MAJORITY"):
        for name, value in one[tag][0].items():
            if name.startswith(("Valid", "Test")):
                assert two[tag][0][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.long
def test_the_recipe_learns_the_shapes(tmp_path):
    done = call(SCRIPT, "--dataset", "shapes", folder=tmp_path)
    assert done.run().events["TEST"][0]["Test_miou"] >= 0.9
