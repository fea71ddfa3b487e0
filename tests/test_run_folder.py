"""The folder of a run: its default name, whose run it holds, and how a new run takes it over."""

import os
from pathlib import Path

import pytest
import torch
from conftest import SCRIPT, call

from lib.cli import CommandLine
from lib.cli.settle import Settled
from lib.runtime import checkpoint, run_folder
from lib.runtime.runlog import RunLog
from lib.training.run import TrainingRun

SHORT = ("--dataset", "digits", "--limit", "60", "--max-epoch", "2")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder in which a short run was made, with its first epoch kept. Not to be written to."""
    folder = tmp_path_factory.mktemp("begun")
    assert call(SCRIPT, *SHORT, "--save-epochs", "1,2", folder=folder).status == 0
    return folder


@pytest.fixture
def run(begun, tmp_path):
    """Call the script in a copy of that folder."""
    for file in begun.rglob("*.pt"):
        copy = tmp_path / file.relative_to(begun)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return lambda *flags: call(SCRIPT, *flags, folder=tmp_path)


def runs_of(folder: Path) -> dict[str, str]:
    return {file.name: checkpoint.load(file)["run"] for file in sorted(folder.glob("*.pt"))}


def test_the_default_folder_names_the_data_set_where_it_is_not_the_usual_one():
    assert run_folder.default_name({"model": "lenet5", "dataset": "mnist"}, "mnist") == "ckpts/lenet5"
    assert run_folder.default_name({"model": "lenet5", "dataset": "digits"}, "mnist") == "ckpts/lenet5-digits"


def test_a_new_run_leaves_no_file_of_the_older_one(run, tmp_path):
    folder = tmp_path / "ckpts/mnist-classifier-digits"
    before = runs_of(folder)
    assert set(before) == {
        "checkpoint_best.pt",
        "checkpoint_last.pt",
        "checkpoint_epoch_1.pt",
        "checkpoint_epoch_2.pt",
    }
    (folder / "member-0").mkdir()
    (folder / "checkpoint_best.pt").rename(folder / "member-0" / "checkpoint_best.pt")
    (folder / "notes.txt").write_text("mine")
    done = run(*SHORT, "--save-epochs", "1")
    assert done.status == 0, done.stderr
    after = runs_of(folder)
    assert set(after) == {"checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_epoch_1.pt"}
    assert set(after.values()) == {done.run().id}
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".pt") == ["notes.txt"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--limit", "70"), "--limit 60 instead of --limit 70"),
        (("--model", "lenet5"), "--model mnist-classifier instead of --model lenet5"),
        (("--size", "32"), "--size 28 instead of --size 32"),
        (("--holdout", "100"), "--holdout 0 instead of --holdout 100"),
    ],
)
def test_a_folder_of_another_network_or_of_other_data_is_not_written_over_unless_told_to(run, flags, said):
    folder = "ckpts/mnist-classifier-digits"
    brief = (*SHORT, "--max-epoch", "1", "--checkpoint-dir", folder, *flags)
    done = run(*brief)
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert f"{folder} holds another run, with {said}" in done.stderr
    assert "--checkpoint-dir, or --overwrite" in done.stderr
    told = run(*brief, "--overwrite")
    assert told.status == 0, told.stderr


def test_the_same_run_again_needs_no_flag(run):
    assert run(*SHORT, "--max-epoch", "1", "-lr", "0.01").status == 0


@pytest.mark.parametrize("content", [b"", b"noise", None])
def test_a_checkpoint_of_which_nobody_knows_whose_it_is_is_not_written_over(run, tmp_path, content):
    folder = tmp_path / "own"
    folder.mkdir()
    file = folder / checkpoint.BEST
    if content is None:
        import torch

        torch.save({"weight": torch.zeros(1)}, file)
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    done = run(*SHORT, "--checkpoint-dir", "own")
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert "--overwrite" in done.stderr
    assert file.read_bytes() == before


def test_a_resume_without_a_folder_takes_the_newest_run_of_the_model(run, tmp_path):
    done = run("--resume", "--max-epoch", "3")
    assert done.run().fields["dataset"] == "digits"
    assert done.run().fields["checkpoint_dir"] == "ckpts/mnist-classifier-digits"
    # Where earlier versions put it.
    os.rename(tmp_path / "ckpts/mnist-classifier-digits", tmp_path / "ckpts/mnist-classifier")
    again = run("--resume", "--dataset", "digits", "--max-epoch", "4")
    assert again.run().fields["checkpoint_dir"] == "ckpts/mnist-classifier"
    assert again.run().id == done.run().id


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"model": "usual", "dataset": "mnist"}, "confusion-mnist.png"),
        ({"model": "other", "dataset": "mnist"}, "confusion-other-mnist.png"),
        ({"model": "usual", "dataset": "folder", "data_dir": "a/my dogs/"}, "confusion-my-dogs.png"),
        ({"model": "usual", "dataset": "folder", "data_dir": "/"}, "confusion-folder.png"),
        ({"model": "usual", "dataset": "digits", "network": "n.py:make"}, "confusion-make-digits.png"),
    ],
)
def test_pictures_are_named_by_their_network_and_data(flags, name):
    values = {"seed": 1, "amp": False, "resume": False, "restore_file": None, "checkpoint_dir": "x"} | flags
    settled = Settled(CommandLine({}, {"model": "usual"}, {}), values, {}, {})
    run = TrainingRun("task", settled, torch.device("cpu"), RunLog("x"))
    assert run.picture_name("confusion") == name
