"""Folders, data sets and caches as others leave them: other names and layouts, files that change."""

import gzip
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, table, write_checkpoint, write_idx
from fuzz import Damage, idx_door, masks_door
from pictures import COLOURS, write_folder
from PIL import Image

from lib.cli import Parser, Scope
from lib.data import datasets, folders, image_files
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import RunFailed, UserError

SMALL = Preprocessing(12, 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize=14)
SCRIPT = "run-image-classification.py"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "look-inside" / "images"


def counts(folder) -> dict[str, int]:
    return {split: len(files.paths) for split, files in folders.find(folder).splits.items()}


# Layouts


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".jpe", ".png", ".bin", ".apng", ""])
def test_images_are_told_by_their_content_where_the_suffix_says_nothing(tmp_path, suffix, capsys):
    kind = "PNG" if "png" in suffix else "JPEG"
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (9, 9), colour).save(tmp_path / name / f"{number}{suffix}", kind)
        (tmp_path / name / "notes.txt").write_text("not an image, and longer than a few bytes")
    assert counts(tmp_path) == {"train": 9}
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", [("Train", "Val", "Test"), ("TRAIN", "VALID", "TEST"), ("Training", "validation", "Testing")]
)
def test_splits_may_have_capitals(tmp_path, names):
    for name, images in zip(names, (3, 2, 1), strict=True):
        write_folder(tmp_path / name, images)
    assert counts(tmp_path) == {"train": 9, "valid": 6, "test": 3}


@pytest.mark.parametrize("below", ["", "unknown", "test"])
def test_a_test_split_without_classes_is_left_out_with_a_word(tmp_path, below, capsys):
    write_folder(tmp_path / "train", 3)
    (tmp_path / "test" / below).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / below / "0.jpg")
    assert counts(tmp_path) == {"train": 9}
    assert f"{tmp_path / 'test'} is left out" in capsys.readouterr().err


def test_folders_of_archivers_and_file_servers_are_no_classes(tmp_path):
    write_folder(tmp_path, 2)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    assert folders.find(tmp_path).classes == tuple(sorted(COLOURS))


def idx_files(folder: Path, mark: str, packed: str, inside: bool = False) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 20)):
        for part, array in (
            ("images{}idx3", random.integers(0, 256, (count, 28, 28))),
            ("labels{}idx1", np.arange(count) % 10),
        ):
            name = f"{split}-{part.format(mark)}-ubyte{packed}"
            path = folder / name / name if inside else folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_idx(path, array)
            if packed:
                path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("below", ["MNIST/raw", "MNIST", "raw", ""])
def test_mnist_is_found_under_the_names_of_every_archive(tmp_path, below, mark, packed, inside):
    idx_files(tmp_path / below, mark, packed, inside)
    splits, _ = datasets.find("mnist").read(tmp_path, {})
    assert (len(splits["train"].labels), len(splits["test"].labels)) == (30, 20)


@pytest.mark.usefixtures("no_network")
def test_files_in_a_folder_for_any_data_set_are_not_taken_for_those_of_fashion(tmp_path):
    idx_files(tmp_path, "-", "")
    with pytest.raises(UserError, match="fashion-mnist is not in"):
        datasets.find("fashion-mnist").read(tmp_path, {})
    idx_files(tmp_path / "fashion", "-", "")
    assert len(datasets.find("fashion-mnist").read(tmp_path / "fashion", {}).splits["train"].labels) == 30


def test_a_home_folder_is_expanded_in_every_flag_that_is_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for script in ("run-image-classification.py", "run-sst2-classification.py", "run-grad-cam.py"):
        from conftest import module_of

        parser = module_of(script).make_parser()
        paths = [
            each.option_strings[-1]
            for each in parser._actions
            if each.metavar in ("DIR", "FILE", "CKPT", "IMAGE", "FILE.npz") and each.dest != "config"
        ]
        assert len(paths) > 3
        for flag in paths:
            values = parser.parse([f"{flag}=~/x"]).typed
            assert [str(tmp_path / "x")] in (list(values.values()), *values.values()), flag


def test_a_path_is_one_by_its_declaration(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser()
    parser.group("data", Scope.DATA).add("--place", is_path=True)
    assert parser.parse(["--place", "~/x"]).typed == {"place": f"{tmp_path}/x"}


# Predictions, and checkpoints of other classes


def test_predictions_of_a_folder_name_its_files_and_other_classes_are_told_the_way_out(tmp_path):
    folder = write_folder(tmp_path / "three", 8)
    flags = ("--dataset", "folder", "--model", "lenet5", "--max-update", "2")
    assert call(SCRIPT, *flags, "--data-dir", folder, folder=tmp_path).status == 0
    best = tmp_path / "ckpts" / "lenet5-folder" / "checkpoint_best.pt"
    done = call(SCRIPT, "--predict-only", "--restore-file", best, folder=tmp_path)
    assert done.status == 0, done.stderr
    rows = table(done.stdout)
    assert rows
    assert all(
        Path(row["image"]).is_file() and Path(row["image"]).parent.name == row["label"] for row in rows
    )

    two = shutil.copytree(folder, tmp_path / "two", ignore=shutil.ignore_patterns("red"))
    new = (*flags, "--data-dir", two, "--checkpoint-dir", tmp_path / "new")
    refused = call(SCRIPT, *new, "--restore-file", best, folder=tmp_path)
    assert refused.status == 2
    assert f"--weights {best}" in refused.stderr
    assert call(SCRIPT, *new, "--weights", best, folder=tmp_path).status == 0
    looked = call(SCRIPT, "--eval-only", "--restore-file", best, "--data-dir", two, folder=tmp_path)
    assert looked.status == 2
    assert looked.is_one_line_error()


@pytest.mark.parametrize("classes", [[], ["0", "1"], list("0123456789ab"), "0123456789", 3, [1] * 10])
def test_names_of_classes_that_are_not_the_networks_are_one_line(classify, tmp_path, classes):
    write_checkpoint(tmp_path / "a.pt", classes=classes)
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    done = classify("--predict-only", "--restore-file", "a.pt", "--input", "a.png")
    assert done.status == 2
    assert done.is_one_line_error()
    assert "class" in done.stderr


# Files that change during a run


def files_of(monkeypatch, folder, workers: int):
    monkeypatch.setattr(image_files, "LARGEST_IN_MEMORY", 0)
    data = image_files.load(folder, SMALL, workers=workers)
    return data.prepared(SMALL.mean, SMALL.std, torch.device("cpu"))


@pytest.mark.usefixtures("impatient_loaders")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", [os.remove, lambda path: Path(path).write_bytes(b"\x89PNG\r\n\x1a\n")])
def test_an_image_that_vanishes_or_is_damaged_during_a_run_ends_it_in_one_line(
    tmp_path, monkeypatch, workers, change
):
    data = files_of(monkeypatch, write_folder(tmp_path / "images", 8), workers)
    change(data.train.files[3])
    with pytest.raises(RunFailed, match=r"could be read when the run began") as error:
        list(data.train.in_order())
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)
    assert data.train.files[3] in str(error.value)


@pytest.mark.usefixtures("impatient_loaders")
def test_a_worker_that_is_killed_is_replaced_by_this_process(tmp_path, monkeypatch, capsys):
    data = files_of(monkeypatch, write_folder(tmp_path / "images", 40), 2)
    expected = torch.cat(
        [labels for _, labels in files_of(monkeypatch, tmp_path / "images", 0).train.in_order()]
    )
    here, read = os.getpid(), Preprocessing.read

    def die(self, path):
        if os.getpid() != here and path == data.train.files[5]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, path)

    monkeypatch.setattr(Preprocessing, "read", die)
    found = torch.cat([labels for _, labels in data.train.in_order()])
    assert torch.equal(found, expected)
    assert "a worker process has died" in capsys.readouterr().err


POISON = {
    "another dict": {"x": 1},
    "no dict": [1, 2],
    "other shapes": {"pixels": torch.zeros(3, dtype=torch.uint8), "bad": []},
    "floats": {"pixels": torch.zeros(24, 3, 12, 12), "bad": []},
    "rows that are not there": {"pixels": torch.zeros(24, 3, 12, 12, dtype=torch.uint8), "bad": [99]},
    "rows that are texts": {"pixels": torch.zeros(24, 3, 12, 12, dtype=torch.uint8), "bad": "no"},
    "nothing": {"pixels": None, "bad": None},
}


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_cache_is_computed_anew(tmp_path, cache_folder, kind):
    folder = write_folder(tmp_path / "images", 8)
    first = image_files.load(folder, SMALL)
    (kept,) = cache_folder.iterdir()
    torch.save(POISON[kind], kept)
    again = image_files.load(folder, SMALL)
    assert torch.equal(first.train.images, again.train.images)
    assert first.train.names == again.train.names


@pytest.mark.parametrize("door", [idx_door, masks_door])
def test_damaged_files_of_digits_and_masks_are_read_or_one_line(door, tmp_path):
    ended = door(tmp_path, Damage(5), 300)
    assert ended["read"] > 10
    assert ended["refused"] > 10
