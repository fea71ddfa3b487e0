"""Checkpoints: whole or as before, whatever happens; and no file is ever run as code."""

import errno
import io
import os
import pickle
import random
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same
from torch import nn

from lib.runtime import checkpoint
from lib.runtime.errors import RunFailed, UserError

TASK = "image-classification"


def network(width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(2))


@pytest.fixture
def model() -> nn.Sequential:
    model = network()
    model(torch.randn(4, 1, 5, 5))
    return model


@pytest.fixture
def content(model) -> dict:
    return {
        "task": TASK,
        "model": {"name": "lenet5", "config": {"classes": 2}},
        "state_dict": model.state_dict(),
        "classes": ["no", "yes"],
        "flags": {"learning_rate": 0.1, "augment": ("shift",), "limit": None},
        "run": "r1",
        "epochs": 2,
        "update": 7,
        "metrics": {"loss": 0.5},
    }


def refusal(path: Path, **options) -> str:
    """The one line with which `load` refuses a file, without any warning besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as refused:
            checkpoint.load(path, **options)
    message = str(refused.value)
    assert path.name in message
    assert "\n" not in message
    return message


# Saving


def test_what_was_saved_is_loaded(tmp_path, content):
    path = tmp_path / "a.pt"
    checkpoint.save(path, content)
    loaded = checkpoint.load(path, task=TASK)
    assert loaded.pop("format") == checkpoint.FORMAT
    assert_same(loaded, content)


def test_a_crash_before_the_rename_leaves_the_old_file_and_no_temporary_one(tmp_path, content, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, content)
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, content | {"update": 8})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(tmp_path, content, monkeypatch):
    path = tmp_path / "a.pt"
    events = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def note_replace(source, target):
        events.append(("replace", Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    checkpoint.save(path, content)
    size = path.stat().st_size
    assert events[:2] == [("fsync", size), ("replace", size)]
    assert [kind for kind, _ in events[2:]] == ["fsync"]  # of the folder


class _FullDisk(io.BytesIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_the_disk(monkeypatch):
    opened = Path.open

    def open_full(path, mode="r", *rest, **options):
        if "w" not in mode:
            return opened(path, mode, *rest, **options)
        opened(path, mode).close()  # the folder's entry still fits
        return _FullDisk()

    monkeypatch.setattr(Path, "open", open_full)


def test_a_full_disk_leaves_the_old_file_whole_and_says_so(tmp_path, content, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, content)
    before = path.read_bytes()
    fill_the_disk(monkeypatch)
    with pytest.raises(RunFailed, match=r"a\.pt: No space left on device; the older a\.pt there is whole"):
        checkpoint.save(path, content | {"update": 8})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_full_disk_without_an_old_file_leaves_nothing_and_claims_nothing(tmp_path, content, monkeypatch):
    fill_the_disk(monkeypatch)
    with pytest.raises(RunFailed, match=r"No space left on device$"):
        checkpoint.save(tmp_path / "a.pt", content)
    assert os.listdir(tmp_path) == []


def test_a_temporary_file_left_by_a_kill_is_in_nobodys_way(tmp_path, content):
    path = tmp_path / "a.pt"
    gone = 2**31 - 1  # as high as no number of a process is
    old, recent, another = f".a.pt.{gone}.tmp", f".a.pt.{gone - 1}.tmp", f".b.pt.{gone}.tmp"
    for name, age in {old: 3600, recent: -60, another: 3600}.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    checkpoint.save(path, content)
    assert checkpoint.load(path)["update"] == 7
    # What another process may still be writing stays, and so does what is another file's.
    assert sorted(os.listdir(tmp_path)) == sorted([recent, another, "a.pt"])


# Loading what is not trusted


class _Code:
    """Makes the folder `path` when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _dump_zip(value, path):
    torch.save(value, path)


def _dump_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def _dump_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("dump", [_dump_zip, _dump_legacy, _dump_pickle])
@pytest.mark.parametrize("wrap", [lambda code: code, lambda code: {"format": 1, "state_dict": code}])
def test_a_pickle_that_executes_code_is_refused_and_never_executed(tmp_path, dump, wrap):
    executed, path = tmp_path / "executed", tmp_path / "evil.pt"
    dump(wrap(_Code(executed)), path)
    refusal(path)
    assert not executed.exists()
    with warnings.catch_warnings():  # the file is as evil as it should be
        warnings.simplefilter("ignore")
        if dump is _dump_pickle:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
    assert executed.exists()


def test_code_is_refused_in_other_words_than_damage(tmp_path, content):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": _Code(tmp_path / "executed")}, path)
    assert "more than plain values and tensors" in refusal(path)
    path.write_bytes(b"\x00\x01 no pickle at all")
    assert "damaged" in refusal(path)
    checkpoint.save(path, content)
    path.write_bytes(path.read_bytes()[:-200])
    assert "cut short" in refusal(path)


def test_a_whole_pickled_module_is_refused(tmp_path, model):
    torch.save(model, tmp_path / "module.pt")
    assert "more than plain values and tensors" in refusal(tmp_path / "module.pt")


def test_a_numpy_scalar_is_refused(tmp_path):
    torch.save({"w": np.float64(1)}, tmp_path / "numpy.pt")
    refusal(tmp_path / "numpy.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's, about TorchScript
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "script.pt"))
    refusal(tmp_path / "script.pt")


@pytest.mark.parametrize("length", [0, 1, 2, 10, 1000])
def test_random_bytes_are_refused(tmp_path, length):
    path = tmp_path / "noise.pt"
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(length))
        refusal(path)


def test_a_checkpoint_cut_short_anywhere_is_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    checkpoint.save(path, content)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_are_refused_or_harmless_but_never_a_traceback(tmp_path, content, legacy):
    path = tmp_path / "a.pt"
    torch.save({"format": 1, **content}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    refused = 0
    for seed in range(150):
        randomness = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(randomness.choice([1, 3, 30])):
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except UserError:
            refused += 1
    assert refused > 50


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.pt")
    assert "there is no file" in refusal(tmp_path / "missing.pt")
    assert "there is no file" in refusal(tmp_path / ("long" * 100))


# Loading what is well-formed but not ours


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), "weights", 3, None])
def test_what_holds_no_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pt")
    assert "not a checkpoint or state_dict" in refusal(tmp_path / "a.pt")


def test_a_checkpoint_of_another_task_is_refused_by_both_names(tmp_path, content):
    checkpoint.save(tmp_path / "a.pt", content)
    message = refusal(tmp_path / "a.pt", task="segmentation")
    assert "trained for image-classification, not for segmentation" in message


def test_a_checkpoint_of_another_format_is_refused_by_both_numbers(tmp_path, content):
    torch.save({"format": 99, **content}, tmp_path / "a.pt")
    assert "format 99; this version reads 1" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("key", ["task", "model", "state_dict", "flags"])
def test_a_checkpoint_that_lacks_something_is_refused_by_its_name(tmp_path, content, key):
    del content[key]
    checkpoint.save(tmp_path / "a.pt", content)
    assert key in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "malformed",
    [
        {"flags": [1]},
        {"flags": None},
        {"flags": {1: 2}},
        {"model": "lenet5"},
        {"model": {}},
        {"model": {"name": "lenet5"}},
        {"model": {"name": 5, "config": {}}},
        {"model": {"name": "lenet5", "config": [3]}},
        {"state_dict": 5},
        {"state_dict": {}},
        {"state_dict": {"0.weight": 5}},
        {"state_dict": {5: torch.zeros(1)}},
        {"task": ["image-classification"]},
    ],
    ids=str,
)
def test_a_checkpoint_with_something_of_the_wrong_kind_is_refused(tmp_path, content, malformed):
    checkpoint.save(tmp_path / "a.pt", content | malformed)
    assert next(iter(malformed)) in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "weights", [{}, {"w": 5}, {5: torch.zeros(1)}, {"state_dict": {}}, {"state_dict": {"w": "x"}}], ids=str
)
def test_a_dictionary_without_weights_is_refused(tmp_path, weights):
    torch.save(weights, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


# Bare state_dict files


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("dump", [_dump_zip, _dump_legacy])
@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights}])
def test_a_bare_state_dict_restores(tmp_path, model, prefix, dump, wrap):
    path = tmp_path / "bare.pt"
    weights = model.state_dict()
    dump(wrap(OrderedDict((prefix + name, value) for name, value in weights.items())), path)
    loaded = checkpoint.load(path, task=TASK)
    assert list(loaded) == ["state_dict"]
    fresh = network()
    fresh(torch.zeros(1, 1, 5, 5))
    checkpoint.restore_weights(fresh, loaded["state_dict"], path)
    assert_same(dict(fresh.state_dict()), dict(weights))


def test_weights_of_before_pytorch_0_4_1_restore_without_their_batch_counter(model):
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(weights) == len(model.state_dict()) - 1
    weights["0.weight"] = weights["0.weight"] + 1
    checkpoint.restore_weights(model, weights, "old.pt")
    assert torch.equal(model[0].weight, weights["0.weight"])


def test_the_batch_counter_is_restored_where_there_is_one(model):
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights["1.num_batches_tracked"] += 41
    checkpoint.restore_weights(model, weights, "a.pt")
    assert model[1].num_batches_tracked == 42


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("0.bias"), "no 0.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda w: w.update({"0.bias": torch.zeros(7)}), r"0.bias is \(7,\), not \(3,\)"),
        (
            lambda w: w.update({"1.num_batches_tracked": torch.zeros(7)}),
            r"1.num_batches_tracked is \(7,\), not \(\)",
        ),
        (lambda w: [w.pop(name) for name in list(w)], "no 0.weight and 7 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_first_difference(model, change, said):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = dict(model.state_dict())
    change(weights)
    with pytest.raises(UserError, match=f"^a.pt does not fit Sequential: {said}"):
        checkpoint.restore_weights(model, weights, "a.pt")
    assert_same(dict(model.state_dict()), before)
