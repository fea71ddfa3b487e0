"""Checkpoints whose fields are not what they should be: each is checked where it enters, in one line."""

import copy
import random
from pathlib import Path

import pytest
import torch
from conftest import SCRIPT, SENTIMENT_SCRIPT, module_of
from damaged_checkpoints import damaged, resume, settled
from training import fit

from lib.runtime import checkpoint
from lib.runtime.errors import UserError

IMAGES, PHRASES = "image-classification", "text-classification"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of a run that stopped after two updates, and its checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    fit(folder, max_epoch=1, max_update=2)
    return folder, torch.load(folder / checkpoint.LAST, weights_only=True)


def lines_of(script: str, *flags: str):
    return module_of(script).make_parser().parse([*flags])


def at(saved: dict, path: str, value) -> dict:
    """Return a copy of `saved` with `value` at a path such as `training.progress.update`."""
    wrong = copy.deepcopy(saved)
    *inner, last = path.split(".")
    holder = wrong
    for key in inner:
        holder = holder[key]
    holder[last] = value
    return wrong


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("format", "\x1b[31mred", "format"),
        ("format", 10**400, "format"),
        ("run", 7, "run"),
        ("epoch", "x", "epoch"),
        ("epoch", True, "epoch"),
        ("update", -1, "update"),
        ("update", 2.0, "update"),
        ("update", 10**30, "update"),
        ("metrics", [1, 2], "metrics"),
        ("metrics", {"loss": "x"}, "metrics"),
        ("classes", 3, "classes"),
        ("classes", [], "classes"),
        ("classes", [1, 2], "classes"),
        ("vocabulary", ["a"], "vocabulary"),
        ("vocabulary", {"words": ["a"], "ngrams": [], "sizes": ["3"]}, "vocabulary"),
        ("vocabulary", {"words": [], "ngrams": [], "sizes": []}, "vocabulary"),
        ("vocabulary", {"words": ["a"]}, "vocabulary"),
        ("preprocessing", "x", "preprocessing"),
        ("training", [1], "training"),
        ("training", {}, "training"),
        ("training.weights", 3, "weights"),
        ("training.weights", {"x": "y"}, "weights"),
        ("training.progress", "x", "progress"),
        ("training.progress", {}, "progress"),
        ("training.progress.update", "five", "progress"),
        ("training.progress.update", 1, "progress"),
        ("training.progress.best_update", -3, "progress"),
        ("training.progress.best_score", "x", "progress"),
        ("training.progress.best_score", ["x"], "progress"),
        ("training.progress.validations_since_best", None, "progress"),
        ("training.optimizer", [1], "optimizer"),
        ("training.optimizer.state", {"x": "y"}, "optimizer"),
        ("training.optimizer.state", [], "optimizer"),
        ("training.optimizer.kind", 5, "optimizer"),
        ("training.optimizer.param_groups", {}, "optimizer"),
        ("training.batches_an_epoch", "5", "batches"),
        ("state_dict", {"a": {"b": 1}}, "state_dict"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused_by_its_name(stopped, path, value, named):
    folder, saved = stopped
    said = resume(at(saved, path, value), folder)
    assert named in said.removeprefix(str(folder))


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_to_the_state_of_a_run_is_more_than_a_line(stopped, seed):
    folder, saved = stopped
    resume(damaged(random.Random(seed), saved), folder)


@pytest.fixture(scope="module", params=[(SCRIPT, IMAGES), (SENTIMENT_SCRIPT, PHRASES)], ids=[IMAGES, PHRASES])
def kept(request, tmp_path_factory) -> tuple:
    """A folder, a command line of a script, its task, and a checkpoint with all flags that it keeps."""
    script, task = request.param
    line = lines_of(script)
    flags = {name: value for name, value in line.values.items() if line.flags[name].is_kept}
    saved = {
        "format": checkpoint.FORMAT,
        "task": task,
        "model": {"name": flags["model"], "config": {}},
        "state_dict": {"w": torch.zeros(1)},
        "flags": flags,
        **{"run": "r1", "epoch": 0, "update": 5, "metrics": {}, "training": {}},
    }
    return tmp_path_factory.mktemp("kept"), line, task, saved


def test_the_flags_that_a_checkpoint_keeps_are_accepted(kept):
    folder, line, task, saved = kept
    assert settled(saved, folder, line, task) == ""


@pytest.mark.parametrize("junk", ["x\x1b", -5, [1], {"a": 1}, float("nan"), True], ids=ascii)
def test_a_flag_of_a_checkpoint_is_one_that_could_be_typed(kept, junk):
    folder, line, task, saved = kept
    free = {
        "model",
        "dataset",
        "data_dir",
        "train_file",
        "valid_file",
        "test_file",
        "weights",
        "teacher",
    }  # any text will do
    for name in saved["flags"].keys() - free:
        if line.flags[name].accepts(junk):
            continue
        said = settled(at(saved, f"flags.{name}", junk), folder, line, task)
        assert f"--{name.replace('_', '-')}" in said, name


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_to_the_flags_of_a_run_is_more_than_a_line(kept, seed):
    folder, line, task, saved = kept
    settled(damaged(random.Random(seed), saved), folder, line, task)


@pytest.mark.parametrize(
    "name", ["batch_size", "learning_rate", "augment", "model", "warmup", "seed", "size"]
)
def test_flags_of_a_checkpoint_have_the_types_and_bounds_of_typed_ones(name):
    flag = lines_of(SCRIPT).flags[name]
    good = {
        "batch_size": 5,
        "learning_rate": 0.1,
        "augment": ("shift",),
        "model": "lenet5",
        "warmup": 0,
        "seed": 1,
        "size": 28,
    }
    assert flag.accepts(good[name])
    for bad in ("\x1b", [], {}, -1, float("inf"), True, 10**400, ("a", 1)):
        assert not flag.accepts(bad) or (name == "augment" and bad == []), bad


def test_a_network_of_a_checkpoint_that_cannot_be_made_is_one_line():
    from lib import models

    for config in (
        {"classes": "x"},
        {"hidden": -1},
        {"channels": 0},
        {"nonsense": 1},
        {"size": 10**9},
        {"classes": None},
    ):
        with pytest.raises(
            (UserError, MemoryError, RuntimeError), match=r"cannot be made|allocate|this machine has"
        ):
            models.build("row-lstm", **({"classes": 2, "channels": 1, "size": 8} | config))
