"""The digits script from end to end: train, log, restore, evaluate, predict, stop, resume, refuse."""

import os
import select
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SCRIPT, Ended, assert_same, command, environment
from kill_and_resume import same

from lib import models
from lib.data import images
from lib.runtime import checkpoint

DIGITS = ("--dataset", "digits")
BRIEF = (*DIGITS, "--limit", "60", "--max-epoch", "1")


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Train, restore, evaluate, predict


def test_a_run_logs_itself_from_its_flags_to_its_best_weights(trained):
    assert trained.ended.stderr == ""
    run = trained.ended.run()
    assert run.fields["dataset"] == "digits"
    assert [event["Epoch"] for event in run.events["VALID"]] == [1, 2, 3, 4]
    assert {"Training_loss", "Learning_rate", "Examples_per_second"} <= set(run.events["TRAIN"][0])
    assert {"Train_loss", "Train_accuracy", "Valid_loss", "Valid_accuracy"} == set(run.events["EVAL"][0])
    assert run.events["EVAL"][0]["Valid_accuracy"] > 0.5
    assert "TEST" not in run.events
    assert "9,958" in trained.ended.stdout
    losses = run.series("TRAIN", "Training_loss")[1]
    assert losses[-1] < losses[0] / 2


def test_a_run_leaves_its_two_checkpoints_and_nothing_else(trained):
    files = [path for path in trained.folder.rglob("*") if path.is_file()]
    assert sorted(files) == [trained.best, trained.last]


@pytest.fixture(scope="module")
def looked_at(trained, tmp_path_factory) -> tuple[Ended, Path]:
    """The best checkpoint, looked at with --restore-file alone in a folder of its own."""
    from conftest import call

    folder = tmp_path_factory.mktemp("looked-at")
    return call(
        SCRIPT, "--eval-only", "--restore-file", trained.best, "--samples", 160, folder=folder
    ), folder


def test_a_checkpoint_restored_with_no_other_flag_has_the_numbers_of_the_run_that_saved_it(
    trained, looked_at
):
    done, _ = looked_at
    assert (done.status, done.stderr) == (0, "")
    assert done.run().events["EVAL"] == trained.ended.run().events["EVAL"]


def test_looking_inside_draws_the_answers_the_convolutions_and_the_features(looked_at):
    done, folder = looked_at
    drawn = sorted(path.name for path in (folder / "imgs").iterdir())
    names = ("activations", "confusion", "feature", "filters", "mistakes")
    assert drawn == [f"{name}-digits.png" for name in names]
    logged = [event["file"] for event in done.run().events["FIGURE"]]
    assert sorted(logged) == [f"imgs/{name}" for name in drawn]
    layers = [event["layer"] for event in done.run().events["FEATURE"]]
    assert layers == list(models.build("mnist-classifier").stages)
    assert not (folder / "ckpts").exists()


@pytest.mark.slow
def test_a_bare_state_dict_restores_and_has_the_same_numbers(trained, classify, tmp_path):
    bare = tmp_path / "bare.pt"
    torch.save(checkpoint.load(trained.best)["state_dict"], bare)
    flags = ("--layers", "fc2", "--samples", 160)
    done = classify("--eval-only", "--restore-file", bare, *DIGITS, *flags)
    assert done.run().events["EVAL"] == trained.ended.run().events["EVAL"]


def test_predictions_are_one_line_an_image_and_agree_with_the_accuracy(trained, classify, tmp_path):
    done = classify("--predict-only", "--restore-file", trained.best, "--out-file", "out/pred.tsv")
    assert done.status == 0
    header, *rows = [line.split("\t") for line in (tmp_path / "out" / "pred.tsv").read_text().splitlines()]
    assert len(rows) == 360
    columns = {name: [row[header.index(name)] for row in rows] for name in ("label", "prediction")}
    right = sum(map(str.__eq__, columns["label"], columns["prediction"]))
    expected = trained.ended.run().events["EVAL"][0]["Valid_accuracy"]
    assert right / 360 == pytest.approx(expected, abs=1e-6)
    assert columns["label"] == [str(label.item()) for label in images.load("digits", "x").valid.labels]
    for row in rows[:20]:
        assert sum(map(float, row[-10:])) == pytest.approx(1, abs=1e-4)
        assert max(map(float, row[-10:])) == pytest.approx(float(row[header.index("probability")]))


def test_predictions_on_standard_output_have_it_to_themselves(trained, classify):
    done = classify("--predict-only", "--restore-file", trained.best)
    assert done.status == 0
    assert len(done.stdout.splitlines()) == 361
    assert all(
        line.count("\t") == done.stdout.splitlines()[0].count("\t") for line in done.stdout.splitlines()
    )


def test_examples_held_out_choose_the_checkpoint_and_the_test_split_is_reported_once(classify, mnist_folder):
    done = classify("--data-dir", mnist_folder, "--holdout", 50, "--max-epoch", 1, "-bs", 32)
    run = done.run()
    (test,) = run.events["TEST"]
    assert set(test) == {"Test_loss", "Test_accuracy"}
    assert test["Test_accuracy"] * 100 == pytest.approx(round(test["Test_accuracy"] * 100), abs=1e-3)
    fiftieths = run.events["VALID"][-1]["Valid_accuracy"] * 50
    assert fiftieths == pytest.approx(round(fiftieths), abs=1e-3)


@pytest.mark.slow
def test_every_model_trains_and_restores(classify, mnist_folder):
    for model, size in (("lenet5", 32), ("deep-cnn", 28), ("row-lstm", 28)):
        flags = ("--data-dir", mnist_folder, "--limit", 50, "--max-epoch", 1, "-bs", 25, "--model", model)
        done = classify(*flags, "--size", size)
        assert done.status == 0, done.stderr
        restore = ("--eval-only", "--restore-file", f"ckpts/{model}/checkpoint_best.pt")
        again = classify(*restore, "--layers", "output", "--samples", 100, "--perplexity", 5)
        assert again.run().events["EVAL"] == done.run().events["EVAL"]


@pytest.mark.slow
def test_all_that_can_be_switched_on_goes_together(classify, mnist_folder, tmp_path):
    everything = (
        *("--optimizer", "sgd", "--schedule", "constant", "--momentum", 0.8, "--weight-decay", 1e-4),
        *("--augment", "shift,rotate,scale,flip,erase", "--label-smoothing", 0.1, "--clip-norm", 1),
        *("--ema", 0.9, "--patience", 3, "--amp", "--validate-interval-updates", 2, "--save-epochs", "1,2"),
        *("--mean", 0.13, "--std", 0.3, "--tensorboard", "tb", "--checkpoint-dir", "c", "--seed", 2**32 - 1),
    )
    flags = ("--data-dir", mnist_folder, "--limit", 60, "--max-epoch", 2, "-bs", 20, "-lr", 0.01)
    done = classify(*flags, *everything)
    assert (done.status, done.stderr) == (0, "")
    kept = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert kept == [f"checkpoint_{name}.pt" for name in ("best", "epoch_1", "epoch_2", "last")]
    assert list((tmp_path / "tb").iterdir())
    again = classify(
        "--eval-only", "--restore-file", "c/checkpoint_best.pt", "--layers", "fc2", "--samples", 100
    )
    assert again.run().events["EVAL"] == done.run().events["EVAL"]


# Stop and resume


def test_a_finished_run_resumed_trains_no_more_and_has_the_same_numbers(trained, classify, tmp_path):
    shutil.copytree(trained.folder / "ckpts", tmp_path / "ckpts")
    before = checkpoint.load(trained.last)
    done = classify("--resume")
    assert done.status == 0
    assert "TRAIN" not in done.run().events
    assert done.run().events["EVAL"] == trained.ended.run().events["EVAL"]
    assert_same(checkpoint.load(tmp_path / "ckpts" / "mnist-classifier-digits" / checkpoint.LAST), before)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_the_run_and_its_resume_ends_at_the_same_weights(
    trained, classify, tmp_path, number, status
):
    process = subprocess.Popen(
        command(SCRIPT, *trained.flags),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = []
        while not any("[TRAIN]" in line for line in log):
            assert select.select([process.stdout], [], [], 60)[0], "no [TRAIN] line within a minute"
            log.append(process.stdout.readline())
            assert log[-1], process.stderr.read()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert stderr.startswith("interrupted after update ")
    assert stderr.endswith("ckpts/mnist-classifier-digits/checkpoint_last.pt is saved, go on with --resume\n")
    assert stderr.count("\n") == 1
    last = tmp_path / "ckpts" / "mnist-classifier-digits" / checkpoint.LAST
    whole = checkpoint.load(trained.last)
    assert 0 < checkpoint.load(last)["update"] < whole["update"]
    assert classify("--resume").status == 0
    resumed = checkpoint.load(last)
    for key in ("state_dict", "training", "metrics", "update"):
        assert same(resumed[key], whole[key]), key


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line_and_status_1(classify):
    done = classify(*BRIEF, "-lr", "1e30", "--optimizer", "sgd", "--augment", "none")
    assert done.status == 1
    assert done.is_one_line_error()
    assert "smaller --learning-rate than 1e+30" in done.stderr


@pytest.mark.slow
def test_a_script_runs_from_any_folder_and_writes_to_that_one(process, tmp_path):
    code = tmp_path / "elsewhere"
    code.mkdir()
    done = process(SCRIPT, *BRIEF, folder=code)
    assert (done.status, done.stderr) == (0, "")
    assert (code / "ckpts" / "mnist-classifier-digits" / checkpoint.BEST).exists()


# Bad input: one line, exit 2, nothing left behind


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, trained) -> Path:
    """Files that no run can use."""
    folder = tmp_path_factory.mktemp("bad")
    whole = trained.best.read_bytes()
    (folder / "noise.pt").write_bytes(os.urandom(500))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "short.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "folder").mkdir()
    content = checkpoint.load(trained.best)
    variants = {
        "task.pt": {"task": "segmentation"},
        "other.pt": {"model": {"name": "resnet18", "config": {}}, "flags": {"model": "resnet18"}},
        "config.pt": {"model": {"name": "mnist-classifier", "config": {"depth": 3}}},
        "shapes.pt": {"model": {"name": "mnist-classifier", "config": {"classes": 7}}},
    }
    for name, change in variants.items():
        checkpoint.save(folder / name, content | change)
    torch.save({"fc1.weight": torch.zeros(2, 2)}, folder / "bare.pt")
    (folder / "mnist" / "MNIST" / "raw").mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (folder / "mnist" / "MNIST" / "raw" / name).write_bytes(b"\0" * 100)
    return folder


RESTORED = ("--eval-only", "--restore-file")
BAD_INPUT = {
    "unknown flag": ("--learning-rte", 3),
    "abbreviated flag": ("--learning", 3),
    "stray word": ("digits",),
    "unknown data set": ("--dataset", "cifar"),
    "unknown model": ("--model", "alexnet"),
    "unknown optimizer": (*BRIEF, "--optimizer", "lion"),
    "unknown schedule": (*BRIEF, "--schedule", "step"),
    "unknown augmentation": (*BRIEF, "--augment", "shift,mixup"),
    "unknown device": (*BRIEF, "--device", "abacus"),
    "device that is not there": (*BRIEF, "--device", "cuda:99"),
    "device of no kind": (*BRIEF, "--device", "cpu:x"),
    "batch size 0": (*BRIEF, "-bs", 0),
    "learning rate nan": (*BRIEF, "-lr", "nan"),
    "learning rate 0": (*BRIEF, "-lr", 0),
    "half an epoch": (*BRIEF, "--max-epoch", 0.5),
    "beta2 of 1": (*BRIEF, "--beta2", 1),
    "negative seed": (*BRIEF, "--seed", -1),
    "seed too large": (*BRIEF, "--seed", 2**64),
    "a number of 400 digits": (*BRIEF, "--max-epoch", "9" * 400),
    "mean nan": (*BRIEF, "--mean", "nan"),
    "std 0": (*BRIEF, "--std", 0),
    "size too small": (*BRIEF, "--size", 2),
    "size that the model does not take": (*BRIEF, "--model", "lenet5", "--size", 64),
    "limit too large": (*DIGITS, "--limit", 5000),
    "limit below a class each": (*DIGITS, "--limit", 9),
    "hold-out of everything": (*DIGITS, "--holdout", 1437),
    "epochs to keep that are none": (*BRIEF, "--save-epochs", "1,two"),
    "checkpoint folder is a file": (*BRIEF, "--checkpoint-dir", "{bad}/noise.pt"),
    "nothing to evaluate": ("--eval-only",),
    "nothing to predict with": ("--predict-only",),
    "evaluate and predict": (*RESTORED, "{best}", "--predict-only"),
    "evaluate and resume": (*RESTORED, "{best}", "--resume"),
    "resume and restore": ("--resume", "--restore-file", "{best}"),
    "restore file missing": (*RESTORED, "{bad}/missing.pt"),
    "restore file a folder": (*RESTORED, "{bad}/folder"),
    "restore file empty": (*RESTORED, "{bad}/empty.pt"),
    "restore file of noise": (*RESTORED, "{bad}/noise.pt"),
    "restore file cut short": (*RESTORED, "{bad}/short.pt"),
    "restore file of another task": (*RESTORED, "{bad}/task.pt"),
    "restore file of an unknown model": (*RESTORED, "{bad}/other.pt"),
    "restore file with another configuration": (*RESTORED, "{bad}/config.pt"),
    "restore file with other shapes": (*RESTORED, "{bad}/shapes.pt"),
    "bare state_dict of another network": (*DIGITS, *RESTORED, "{bad}/bare.pt"),
    "bare state_dict to start from": (*BRIEF, "--restore-file", "{bad}/bare.pt"),
    "another model than the file's": (*RESTORED, "{best}", "--model", "lenet5"),
    "another size than the file's": (*RESTORED, "{best}", "--size", 32),
    "perplexity of all samples": (*RESTORED, "{best}", "--samples", 160, "--perplexity", 160),
    "predictions over the checkpoint": ("--predict-only", "--restore-file", "{best}", "--out-file", "{best}"),
    "perplexity 0": (*RESTORED, "{best}", "--perplexity", 0),
    "unknown layer": (*RESTORED, "{best}", "--layers", "fc2", "fc3"),
    "dims of 4": (*RESTORED, "{best}", "--dims", 4),
    "picture folder is a file": (*RESTORED, "{best}", "--out-dir", "{bad}/noise.pt"),
    "projector folder is a file": (*RESTORED, "{best}", "--samples", 160, "--projector", "{bad}/noise.pt"),
    "predictions into a folder": ("--predict-only", "--restore-file", "{best}", "--out-file", "{bad}/folder"),
    "predictions below a file": (
        "--predict-only",
        "--restore-file",
        "{best}",
        "--out-file",
        "{bad}/noise.pt/x",
    ),
    "predictions over an image": (
        *("--predict-only", "--restore-file", "{best}"),
        *("--input", "{bad}/noise.pt", "--out-file", "{bad}/noise.pt"),
    ),
    "input that is missing": ("--predict-only", "--restore-file", "{best}", "--input", "{bad}/none.png"),
    "input that is no image": ("--predict-only", "--restore-file", "{best}", "--input", "{bad}/noise.pt"),
    "data that is damaged": ("--data-dir", "{bad}/mnist"),
    "data that is missing": ("--data-dir", "nowhere"),
    "tensorboard folder is a file": (*BRIEF, "--tensorboard", "{bad}/noise.pt"),
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("flags", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_exit_2_and_leaves_nothing_behind(
    classify, flags, bad_files, trained, tmp_path
):
    before = everything_below(bad_files)
    done = classify(*(str(flag).format(bad=bad_files, best=trained.best) for flag in flags))
    assert done.status == 2, done
    assert done.is_one_line_error(), done.stderr
    assert list(everything_below(tmp_path)) == []
    assert everything_below(bad_files) == before


def test_an_unknown_layer_is_answered_with_the_layers_there_are(trained, classify):
    stderr = classify(*RESTORED, trained.best, "--layers", "fc3").stderr
    assert "there is no layer 'fc3'" in stderr
    assert "fc2" in stderr
    assert "layers.sub-layer0.conv" in stderr


@pytest.mark.slow
def test_a_file_that_executes_code_is_refused_in_a_process_of_its_own(process, tmp_path):
    """With what a real process writes to stderr: torch may not put its warnings beside the line."""

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Code(), tmp_path / "evil.pt", _use_new_zipfile_serialization=False)
    done = process(SCRIPT, *RESTORED, "evil.pt")
    assert done.status == 2
    assert done.is_one_line_error()
    assert "refused" in done.stderr
    assert not (tmp_path / "executed").exists()
