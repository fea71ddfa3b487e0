"""A mistaken command is told the right one: misspelt flags, images without a flag, checkpoints of others."""

import pytest
from conftest import ROOT, call, module_of, write_checkpoint
from PIL import Image

from lib.cli import scripts, suggestions
from lib.data import folders
from lib.runtime import checkpoint
from lib.runtime.errors import OtherTaskError, UserError

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
TRAINING = [name for name in SCRIPTS if name in {*scripts._SCRIPTS.values(), *scripts._OF_IMAGES.values()}]


def refusal(script: str, *words: str) -> str:
    with pytest.raises(UserError) as refused:
        module_of(script).make_parser().parse(words)
    return str(refused.value)


# ---- flags


@pytest.mark.parametrize("script", TRAINING)
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--epochs", "3"], "--max-epoch"),
        (["--lr=0.1"], "--learning-rate"),
        (["--learning_rate", "0.1"], "--learning-rate"),
        (["--optimiser", "adam"], "--optimizer"),
        (["--restore", "x"], "--restore-file"),
        (["--weigth-decay", "1"], "--weight-decay"),
    ],
)
def test_a_misspelt_flag_of_training_is_told_the_nearest(script, typed, meant):
    assert f"(did you mean {meant}?)" in refusal(script, *typed)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_every_script_is_found_with_underscores_and_with_a_letter_missing(script):
    parser = module_of(script).make_parser()
    flags = [each for each in parser._option_string_actions if each.startswith("--") and len(each) > 6]
    found = {flag: suggestions.meant(flag.replace("-", "_").replace("__", "--"), flags) for flag in flags}
    assert found == {flag: flag for flag in flags}
    for flag in flags:
        near = suggestions.meant(f"{flag[:4]}{flag[5:]}", flags)
        assert near is not None
        assert flag in (near, f"--no-{near[2:]}") or abs(len(near) - len(flag)) <= 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_no_flag_resembles_gets_no_suggestion(script):
    said = refusal(script, "--qqqqzzzz", "3")
    assert "unrecognized arguments: --qqqqzzzz" in said
    assert "did you mean" not in said


def test_synonyms_never_hide_a_flag_that_a_script_has():
    assert suggestions.meant("--steps", ["--steps", "--max-update"]) == "--steps"
    assert suggestions.meant("--model", ["--ptm"]) == "--ptm"


def test_an_image_without_a_flag_is_told_its_flag():
    assert "did you mean --input dog.jpg?" in refusal("run-grad-cam.py", "dog.jpg", "--ptm", "resnet18")


# ---- the right script for a checkpoint


@pytest.mark.parametrize(("task", "script"), sorted(scripts._SCRIPTS.items()))
@pytest.mark.parametrize("given", [*TRAINING, "run-grad-cam.py", "run-integrated-gradients.py"])
def test_a_checkpoint_of_another_task_is_told_its_script(tmp_path, task, script, given):
    file = write_checkpoint(tmp_path / "c.pt", task=task)
    explains = given not in TRAINING
    if given == script or (explains and task != "text-classification"):
        return
    mode = ["--input", "digits:0"] if explains else ["--eval-only"]
    ended = call(given, *mode, "--restore-file", str(file), folder=tmp_path)
    assert ended.is_one_line_error()
    assert f"use {script} --restore-file {file}" in ended.stderr


@pytest.mark.parametrize("channels", [1, 3])
def test_a_checkpoint_of_other_colours_is_told_its_script(tmp_path, channels):
    how = {"size": 28, "channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels}
    config = {"classes": 10, "channels": channels, "size": 28}
    flags = {"model": "lenet5", "dataset": "digits"} if channels == 1 else {"model": "lenet5"}
    model = {"name": "lenet5", "config": config}
    file = write_checkpoint(tmp_path / "c.pt", preprocessing=how, model=model, flags=flags)
    right, wrong = scripts._OF_IMAGES[channels], scripts._OF_IMAGES[4 - channels]
    data = ["--dataset", "digits"] if channels == 3 else []
    ended = call(wrong, "--eval-only", *data, "--restore-file", str(file), folder=tmp_path)
    assert ended.is_one_line_error()
    assert f"use {right} --restore-file {file}" in ended.stderr
    assert ended.stderr.rstrip().endswith("--dataset digits") == (channels == 1)


def test_damaged_checkpoints_are_told_no_script():
    assert scripts.script_of({}) is None
    assert scripts.script_of({"task": ["x"]}) is None
    assert scripts.script_of({"task": "image-classification", "preprocessing": {"mean": 3}}) is None


def test_the_error_of_another_task_keeps_what_was_read(tmp_path):
    file = write_checkpoint(tmp_path / "c.pt", task="segmentation")
    with pytest.raises(OtherTaskError) as refused:
        checkpoint.load(file, task="reconstruction")
    assert refused.value.content["task"] == "segmentation"


# ---- folders of images, and layers


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("layout", ["", "cat", "train/cat"])
@pytest.mark.parametrize(
    "script", ["run-image-classification.py", "run-mnist-classification.py", "run-segmentation.py"]
)
def test_nothing_is_downloaded_into_a_folder_of_images(tmp_path, layout, script):
    folder = tmp_path / "dogs" / layout
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.jpg")
    data = ["--dataset", "voc"] if script == "run-segmentation.py" else []
    ended = call(script, *data, "--data-dir", "dogs", folder=tmp_path)
    assert ended.is_one_line_error()
    assert "dogs holds images" in ended.stderr
    assert "--dataset folder" in ended.stderr


def test_a_folder_of_other_things_is_no_folder_of_images(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "notes.txt").write_text("x")
    folders.refuse_to_download(tmp_path, "mnist")
    folders.refuse_to_download(tmp_path / "nowhere", "mnist")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", [[], ["--weights", "nowhere.pth"]])
def test_layers_are_listed_without_weights(tmp_path, weights):
    ended = call("run-grad-cam.py", "--ptm", "squeezenet1_1", "--list-layers", *weights, folder=tmp_path)
    assert ended.status == 0, ended.stderr
    assert "(default)" in ended.stdout
