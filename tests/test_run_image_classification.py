"""The photograph script from end to end: folders and CIFAR-10, transfer, views, predictions, refusals."""

import math

import numpy as np
import pytest
import torch
from conftest import Ended, assert_same, call, write_checkpoint
from pictures import COLOURS, write_folder, write_image
from test_cifar import write_cifar10

from lib import models
from lib.data import augment
from lib.data.preprocessing import Preprocessing
from lib.models import transfer
from lib.runtime import checkpoint
from lib.tasks import image_prediction

SCRIPT = "run-image-classification.py"
BRIEF = ("--dataset", "folder", "--model", "simple-cnn", "--size", 16, "--max-epoch", 2, "-bs", 12)


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes of 24 images. Not to be written to."""
    return write_folder(tmp_path_factory.mktemp("photos"), images=24)


@pytest.fixture
def run(tmp_path):
    return lambda *flags, folder=tmp_path: call(SCRIPT, *flags, folder=folder)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> tuple[Ended, object]:
    """A short run on the photos, and its folder. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        done = call(SCRIPT, *BRIEF, "--data-dir", photos, "--max-epoch", 6, "--bn", folder=folder)
    assert done.status == 0, done.stderr
    return done, folder / "ckpts" / "simple-cnn-folder" / "checkpoint_best.pt"


def evaluation(done: Ended) -> dict:
    assert done.status == 0, done.stderr
    return done.run().events["EVAL"][0]


def test_a_run_on_a_folder_learns_its_classes_and_restores_from_its_checkpoint_alone(trained, run):
    done, best = trained
    assert evaluation(done)["Valid_accuracy"] > 0.8
    again = run("--eval-only", "--restore-file", best, "--samples", 8, "--perplexity", 3, "--layers", "pool4")
    assert evaluation(again) == evaluation(done)
    saved = checkpoint.load(best)
    assert saved["classes"] == ["blue", "green", "red"]
    how = Preprocessing.of(saved["preprocessing"], best)
    assert (how.size, how.channels, how.resize) == (16, 3, 16)
    assert how.mean == (0.485, 0.456, 0.406)
    assert saved["model"]["config"]["bn"] is True


def test_looking_inside_draws_and_writes_sprites(trained, photos, run, tmp_path):
    _, best = trained
    views = ("--thumbnails", "--projector", "projector", "--samples", 8, "--perplexity", 3)
    done = run("--eval-only", "--restore-file", best, *views)
    assert (done.status, done.stderr) == (0, "")
    drawn = sorted(path.stem for path in (tmp_path / "imgs").iterdir())
    names = ("activations", "confusion", "feature", "filters", "mistakes", "thumbnails")
    assert drawn == [f"{name}-simple-cnn-{photos.name}" for name in names]
    table = [line for line in done.stdout.splitlines() if "[ACTIVATIONS]" in line]
    assert [line.split("] ")[1].split()[0] for line in table] == [
        "convolution",
        *(f"conv{number}" for number in (1, 2, 3, 4)),
    ]
    assert (tmp_path / "projector" / "sprite.png").exists()


def test_predictions_of_files_are_those_of_the_same_images_in_the_split(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(image_prediction, "INPUT_BATCH", 2)
    _, best = trained
    files = [tmp_path / f"{name}\n1.png" for name in COLOURS]
    for number, colour in enumerate(COLOURS.values()):
        write_image(files[number], colour, seed=500 + number)
    done = run("--predict-only", "--restore-file", best, "--input", *files)
    assert done.status == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["image", "prediction", "probability", "blue", "green", "red"]
    saved = checkpoint.load(best)
    model = models.build(saved["model"]["name"], **saved["model"]["config"]).eval()
    model.load_state_dict(saved["state_dict"])
    how = Preprocessing.of(saved["preprocessing"], best)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    with torch.no_grad():
        expected = model((torch.stack([how.read(file) for file in files]) - mean) / std).softmax(1)
    found = torch.tensor([[float(cell) for cell in row[3:]] for row in rows])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_cifar10_in_its_own_format_trains_and_is_tested_once(run, tmp_path):
    write_cifar10(tmp_path / "data", images=40)
    done = run("--model", "lenet5", "--max-epoch", 1, "--valid-fraction", 0.2)
    assert done.status == 0, done.stderr
    assert set(done.run().events["TEST"][0]) == {"Test_loss", "Test_accuracy"}
    official = run("--model", "lenet5", "--max-epoch", 1, "--overwrite")
    assert "TEST" not in official.run().events
    assert official.run().events["PLAN"][0]["Steps_per_epoch"] == 13  # 200 images, 16 a batch, 8 left


@pytest.mark.slow
@pytest.mark.parametrize("model", ["row-gru", "deep-cnn", "fast-cnn"])
def test_other_networks_train_and_restore(run, photos, model):
    flags = ("--size", 20, "--model", model, "--data-dir", photos, "--max-epoch", 1)
    done = run(*BRIEF, *flags)
    again = run("--eval-only", "--restore-file", f"ckpts/{model}-folder/checkpoint_best.pt", "--samples", 8)
    assert evaluation(again) == evaluation(done)


@pytest.mark.slow
def test_images_above_64_px_are_read_by_workers_and_a_resumed_run_ends_at_the_same_weights(
    run, photos, tmp_path
):
    large = ("--size", 72, "--workers", 2, "--augment", "crop,color,affine,flip,erase", "--data-dir", photos)
    flags = (*BRIEF, *large, "--limit", 24, "--schedule", "constant")  # whatever the number of updates
    whole = run(*flags, "--checkpoint-dir", "whole")
    assert whole.status == 0, whole.stderr
    run(*flags, "--checkpoint-dir", "parts", "--max-update", 3)
    resumed = run("--resume", "--checkpoint-dir", "parts", "--max-update", 4, "--workers", 0)
    assert evaluation(resumed) == evaluation(whole)
    ends = [checkpoint.load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts")]
    assert [end["update"] for end in ends] == [4, 4]
    assert_same(ends[0]["state_dict"], ends[1]["state_dict"])


def test_the_first_layer_of_fast_cnn_is_fitted_to_the_images_and_then_kept(run, photos, tmp_path):
    flags = (*BRIEF, "--model", "fast-cnn", "--size", 20, "--data-dir", photos)
    for epochs in (1, 2):
        run(*flags, "--max-epoch", epochs, "--checkpoint-dir", str(epochs))
    ends = [checkpoint.load(tmp_path / name / "checkpoint_last.pt")["state_dict"] for name in "12"]
    first = ends[0]["conv0.weight"]
    assert torch.equal(first[:12], -first[12:])
    assert torch.equal(first, ends[1]["conv0.weight"])
    assert not torch.equal(ends[0]["conv1.weight"], ends[1]["conv1.weight"])


# Transfer


@pytest.mark.slow
def test_windows_come_first_and_a_run_resumed_among_them_ends_at_the_same_weights(run, photos, tmp_path):
    flags = (*BRIEF, "--model", "fast-cnn", "--size", 20, "--data-dir", photos, "--schedule", "constant")
    flags += ("--max-epoch", 3)
    windows = ("--windows", "0.7:0.34,0.8:0.67")
    whole = run(*flags, *windows, "--checkpoint-dir", "whole")
    assert whole.status == 0, whole.stderr
    run(*flags, *windows, "--checkpoint-dir", "parts", "--max-update", 3)
    resumed = run("--resume", "--checkpoint-dir", "parts", "--max-update", 1000)
    assert evaluation(resumed) == evaluation(whole)
    run(*flags, "--checkpoint-dir", "no windows", "--windows", "none")
    names = ("whole", "parts", "no windows")
    ends = [checkpoint.load(tmp_path / name / "checkpoint_last.pt")["state_dict"] for name in names]
    assert_same(ends[0], ends[1])
    assert not torch.equal(ends[0]["conv1.weight"], ends[2]["conv1.weight"])


def test_windows_grow_when_they_are_to_and_the_whole_images_come_last(run, photos, monkeypatch):
    sides, random_windows = [], augment.random_windows

    def recorded(images, height, width):
        sides.append(height)
        return random_windows(images, height, width)

    monkeypatch.setattr(augment, "random_windows", recorded)
    flags = (*BRIEF, "--model", "fast-cnn", "--size", 20, "--data-dir", photos, "--augment", "shift")
    done = run(*flags, "--max-epoch", 4, "--windows", "0.7:0.25,0.8:0.75")
    assert done.status == 0, done.stderr
    epochs = np.array_split(sides, 4)  # whole images are shifted, which is a window, too
    assert [set(epoch) for epoch in epochs] == [{14}, {16}, {16}, {20}]


@pytest.mark.slow
def test_answers_about_several_views_are_reported_and_predicted_until_told_not_to(run, photos, tmp_path):
    flags = ("--model", "fast-cnn", "--size", 20, "--data-dir", photos, "--max-epoch", 1)
    done = run(*BRIEF, *flags)
    views = done.run().events["VIEWS"][0]
    assert views["Views"] == 6
    assert views["Valid_loss"] != evaluation(done)["Valid_loss"]
    best = tmp_path / "ckpts" / "fast-cnn-folder" / "checkpoint_best.pt"
    losses = {}
    for count in (6, 2, 1):
        told = () if count == 6 else ("--test-views", count)
        predicted = run("--predict-only", "--restore-file", best, *told)
        lines = predicted.stdout.splitlines()
        assert f" Views={count} " in predicted.stderr
        header, *rows = [line.split("\t") for line in lines]
        p = [float(row[header.index(row[1])]) for row in rows]
        losses[count] = -sum(map(math.log, p)) / len(p)
    assert losses[6] == pytest.approx(views["Valid_loss"], abs=1e-4)
    assert losses[1] == pytest.approx(evaluation(done)["Valid_loss"], abs=1e-4)
    assert losses[2] not in (losses[1], losses[6])
    plots = ("--samples", 8, "--perplexity", 3)
    again = run("--eval-only", "--restore-file", best, *plots)
    assert again.run().events["VIEWS"][0] == views
    assert evaluation(again) == evaluation(done)
    plain = run("--eval-only", "--restore-file", best, "--test-views", 1, *plots)
    assert "VIEWS" not in plain.run().events


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options", "size", "layer"),
    [("simple-cnn", ("--bn",), 128, "pool4"), ("fast-cnn", (), 192, "gelu6")],
)
def test_a_trunk_learnt_on_some_classes_is_frozen_for_others_and_its_features_are_kept(
    run, photos, tmp_path, model, options, size, layer
):
    common = (*BRIEF, "--model", model, *options, "--data-dir", photos)
    first = run(*common, "--classes", "blue,green", "--save-epochs", "1,2")
    assert first.status == 0, first.stderr
    weights = f"ckpts/{model}-folder/checkpoint_best.pt"
    flags = (*common, "--weights", weights, "--freeze", "--augment", "none")
    done = run(*flags, "--checkpoint-dir", "second")
    assert done.status == 0, done.stderr
    assert done.run().events["FEATURES"][0]["Size"] == size
    old = checkpoint.load(tmp_path / weights)["state_dict"]
    new = checkpoint.load(tmp_path / "second" / "checkpoint_best.pt")
    trunk = [name for name in old if not name.startswith("output.")]
    assert all(torch.equal(old[name], new["state_dict"][name]) for name in trunk)
    assert new["classes"] == ["blue", "green", "red"]
    views = ("--samples", 8, "--perplexity", 3, "--layers", layer)
    again = run("--eval-only", "--restore-file", "second/checkpoint_best.pt", *views)
    for key, value in evaluation(again).items():
        assert value == pytest.approx(evaluation(done)[key], abs=1e-5)
    assert run("--resume", "--checkpoint-dir", "second").status == 0
    augmented = run(*flags[:-1], "flip", "--checkpoint-dir", "third")
    assert augmented.status == 0, augmented.stderr
    assert "FEATURES" not in augmented.run().events


def test_a_frozen_run_stopped_and_resumed_ends_at_the_same_weights(run, photos, trained, tmp_path):
    """The features that it goes on with are those of the trunk that it was given."""
    flags = (*BRIEF, "--bn", "--data-dir", photos, "--schedule", "constant", "--augment", "none")
    frozen = ("--weights", trained[1], "--freeze", "--classes", "green,red")
    whole = run(*flags, *frozen, "--checkpoint-dir", "whole")
    assert whole.status == 0, whole.stderr
    run(*flags, *frozen, "--checkpoint-dir", "parts", "--max-update", 3)
    resumed = run("--resume", "--checkpoint-dir", "parts", "--max-update", 1000)
    assert evaluation(resumed) == evaluation(whole)
    ends = [checkpoint.load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts")]
    assert_same(*(end["state_dict"] for end in ends))
    finished = run("--resume", "--checkpoint-dir", "parts")
    assert "[RUN] nothing is left to train: " in finished.stdout
    assert evaluation(finished) == evaluation(whole)


def test_the_script_for_digits_prepares_an_image_as_the_checkpoint_says(run, photos, trained, tmp_path):
    asked = ("--predict-only", "--restore-file", trained[1], "--input", photos / "red" / "003.png")
    answers = [run(*asked).stdout, call("run-mnist-classification.py", *asked, folder=tmp_path).stdout]
    assert answers[0] == answers[1] != ""


def test_a_network_of_torchvisions_begins_with_a_file_and_its_trunk_learns_slower(run, photos, tmp_path):
    torch.manual_seed(0)
    theirs = models.build("shufflenet_v2_x0_5", classes=1000, channels=3, size=64)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    flags = (*BRIEF, "--model", "shufflenet_v2_x0_5", "--size", 32, "--data-dir", photos, "--limit", 24)
    rates = ("--optimizer", "sgd", "--weights", "theirs.pth", "-lr", 0.1, "--trunk-lr", 1e-9)
    done = run(*flags, "--max-epoch", 1, *rates)
    assert done.status == 0, done.stderr
    saved = checkpoint.load(tmp_path / "ckpts" / "shufflenet_v2_x0_5-folder" / "checkpoint_best.pt")
    head, _ = transfer.head_of(theirs)
    for name, parameter in theirs.named_parameters():
        if not name.startswith(f"{head}."):
            torch.testing.assert_close(saved["state_dict"][name], parameter, atol=1e-6, rtol=0)


def test_weights_bring_their_preprocessing(run, photos, tmp_path):
    """A network of torchvision's sees images as its published weights do; here at a size of their own."""
    theirs = models.build("shufflenet_v2_x0_5", classes=1000, channels=3, size=224)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    begin = ("--dataset", "folder", "--data-dir", photos, "--model", "shufflenet_v2_x0_5", "--limit", 3)
    flags = ("--weights", "theirs.pth", "--freeze", "--max-epoch", 1, "-bs", 3, "--workers", 0)
    assert run(*begin, *flags).status == 0
    saved = checkpoint.load(tmp_path / "ckpts" / "shufflenet_v2_x0_5-folder" / "checkpoint_best.pt")
    how = Preprocessing.of(saved["preprocessing"], "it")
    assert (how.size, how.resize, how.mean) == (224, 256, (0.485, 0.456, 0.406))


# Bad input: one line, exit 2

BAD_INPUT = {
    "no such folder": (*BRIEF, "--data-dir", "nowhere"),
    "no such network": (*BRIEF, "--model", "resnet81", "--data-dir", "{photos}"),
    "no such class": (*BRIEF, "--data-dir", "{photos}", "--classes", "blue,pink"),
    "one class": (*BRIEF, "--data-dir", "{photos}", "--classes", "blue"),
    "classes of cifar10": ("--data-dir", "{cifar}", "--classes", "cat,dog"),
    "fraction of everything": (*BRIEF, "--data-dir", "{photos}", "--valid-fraction", 1),
    "fraction of too little": (*BRIEF, "--data-dir", "{photos}", "--valid-fraction", 0.001),
    "limit too large": (*BRIEF, "--data-dir", "{photos}", "--limit", 4000),
    "freeze what is random": (*BRIEF, "--data-dir", "{photos}", "--freeze"),
    "freeze and a trunk rate": (
        *(*BRIEF, "--data-dir", "{photos}", "--weights", "{best}", "--bn"),
        *("--freeze", "--trunk-lr", 0.1),
    ),
    "weights of another network": (
        *BRIEF,
        "--data-dir",
        "{photos}",
        "--weights",
        "{best}",
        "--model",
        "lenet5",
    ),
    "weights of another make": (*BRIEF, "--data-dir", "{photos}", "--weights", "{best}"),
    "weights that are not there": (*BRIEF, "--data-dir", "{photos}", "--weights", "none.pt"),
    "a flag of other networks": (*BRIEF, "--data-dir", "{photos}", "--hidden", 8),
    "another option of another": (*BRIEF, "--data-dir", "{photos}", "--model", "lenet5", "--bn"),
    "size that the network does not take": (*BRIEF, "--data-dir", "{photos}", "--size", 12),
    "size that a network of torchvision's does not take": (
        *("--dataset", "folder", "--data-dir", "{photos}"),
        *("--model", "alexnet", "--size", 32),
    ),
    "size that makes no patches": (
        *("--dataset", "folder", "--data-dir", "{photos}"),
        *("--model", "vit_b_16", "--size", 40),
    ),
    "colours for a network that takes none": (
        *("--dataset", "folder", "--data-dir", "{photos}"),
        *("--restore-file", "{grey}"),
    ),
    "two things to begin with": (
        *(*BRIEF, "--bn", "--data-dir", "{photos}"),
        *("--restore-file", "{best}", "--weights", "{best}"),
    ),
    "freeze what is random on purpose": (
        *(*BRIEF, "--data-dir", "{photos}"),
        *("--weights", "random", "--freeze"),
    ),
    "pooling of a training run": (*BRIEF, "--data-dir", "{photos}", "--pool", "flatten"),
    "a name too long": (*BRIEF, "--data-dir", "{photos}" + "x" * 300),
    "unknown augmentation": (*BRIEF, "--data-dir", "{photos}", "--augment", "mixup"),
    "window without an end": (*BRIEF, "--data-dir", "{photos}", "--windows", 0.75),
    "window beyond the image": (*BRIEF, "--data-dir", "{photos}", "--windows", "1.5:0.5"),
    "windows that end together": (*BRIEF, "--data-dir", "{photos}", "--windows", "0.7:0.5,0.8:0.5"),
    "window that the network does not take": (
        *(*BRIEF, "--data-dir", "{photos}"),
        *("--windows", "0.75:0.5"),
    ),
    "thumbnails in space": ("--eval-only", "--restore-file", "{best}", "--thumbnails", "--dims", 3),
    "thumbnails of a training run": (*BRIEF, "--data-dir", "{photos}", "--thumbnails"),
    "another size than the file's": ("--eval-only", "--restore-file", "{best}", "--size", 32),
    "other classes than the file's": ("--eval-only", "--restore-file", "{best}", "--classes", "blue,red"),
    "input that is no image": ("--predict-only", "--restore-file", "{best}", "--input", "{best}"),
}


@pytest.mark.parametrize("flags", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_exit_2(run, flags, photos, trained, tmp_path):
    write_cifar10(tmp_path / "cifar", images=1)
    places = {"photos": photos, "best": trained[1], "cifar": tmp_path / "cifar"}
    places["grey"] = write_checkpoint(tmp_path / "grey.pt")
    done = run(*(str(flag).format(**places) for flag in flags))
    assert done.status == 2, done
    assert done.is_one_line_error(), done.stderr
    assert not (tmp_path / "ckpts").exists()


def test_an_image_that_cannot_be_read_is_one_line_or_is_left_out(run, tmp_path):
    folder = write_folder(tmp_path / "photos", 12)
    (folder / "red" / "005.png").write_bytes(b"no image")
    done = run(*BRIEF, "--data-dir", folder)
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert "1 of 36 images cannot be read" in done.stderr
    left = run(*BRIEF, "--data-dir", folder, "--max-epoch", 1, "--skip-bad")
    assert left.status == 0
    assert left.stderr.count("\n") == 1
    assert "red/005.png" in left.stderr


@pytest.mark.slow
def test_a_run_resumed_or_looked_into_still_leaves_out_the_images_that_cannot_be_read(run, tmp_path):
    photos = write_folder(tmp_path / "photos", images=16)
    next(photos.rglob("*.png")).write_bytes(b"no image")
    flags = ("--dataset", "folder", "--data-dir", photos, "--model", "lenet5", "--max-epoch", 1)
    begun = run(*flags, "--skip-bad")
    assert begun.status == 0, begun.stderr
    assert run("--resume", "--model", "lenet5", "--max-epoch", 2).status == 0
    best = "ckpts/lenet5-folder/checkpoint_best.pt"
    assert run("--eval-only", "--restore-file", best, "--samples", 6).status == 0
