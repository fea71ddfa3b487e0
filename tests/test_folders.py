"""Folders of images: their layouts, and what is wrong with one, in one line."""

import shutil

import numpy as np
import pytest
from pictures import write_folder
from scipy.io import savemat

from lib.data import folders
from lib.runtime.errors import UserError


def refused(folder, **options) -> str:
    with pytest.raises(UserError) as error:
        folders.find(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def names(files: folders.Files) -> list[str]:
    return [path.split("/", path.count("/") - 1)[-1] for path in files.paths]


def test_a_folder_of_classes_is_all_for_training_in_the_order_of_names(tmp_path):
    found = folders.find(write_folder(tmp_path, images=2))
    assert found.classes == ("blue", "green", "red")
    assert list(found.splits) == ["train"]
    assert names(found.splits["train"]) == [f"{c}/00{i}.png" for c in found.classes for i in range(2)]
    assert found.splits["train"].labels == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("valid", ["valid", "val", "validation"])
def test_splits_are_found_by_any_of_their_spellings(tmp_path, valid):
    for split, images in (("train", 3), (valid, 2), ("test", 1)):
        write_folder(tmp_path / split, images)
    found = folders.find(tmp_path)
    assert {name: len(files.paths) for name, files in found.splits.items()} == {
        "train": 9,
        "valid": 6,
        "test": 3,
    }


def test_a_split_may_lack_a_class_that_training_has(tmp_path):
    write_folder(tmp_path / "train", 2)
    write_folder(tmp_path / "test", 2)
    shutil.rmtree(tmp_path / "test" / "green")
    assert folders.find(tmp_path).splits["test"].labels == [0, 0, 2, 2]


def test_classes_that_are_asked_for_are_numbered_anew(tmp_path):
    found = folders.find(write_folder(tmp_path, 2), only=("red", "green"))
    assert found.classes == ("green", "red")
    assert found.splits["train"].labels == [0, 0, 1, 1]
    assert names(found.splits["train"])[-1] == "red/001.png"
    said = refused(tmp_path, only=("red", "pink"))
    assert "no class 'pink'" in said
    assert "blue, green, red" in said


def test_hidden_files_are_passed_over_and_others_are_named_in_one_warning(tmp_path, capsys):
    write_folder(tmp_path, 2)
    (tmp_path / "red" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").write_text("beside the classes")
    assert len(folders.find(tmp_path).splits["train"].paths) == 6
    assert capsys.readouterr().err == ""
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / "red" / name).write_text("no image")
    (tmp_path / "green" / "more").mkdir()
    assert len(folders.find(tmp_path).splits["train"].paths) == 6
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "green/more, red/a.txt, red/b.txt and 2 more" in said


def test_suffixes_are_known_whatever_the_case(tmp_path):
    write_folder(tmp_path, 2)
    (tmp_path / "red" / "000.png").rename(tmp_path / "red" / "000.PNG")
    assert len(folders.find(tmp_path).splits["train"].paths) == 6


def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path):
    assert "no folder" in refused(tmp_path / "missing")
    assert "images go into" in refused(tmp_path)
    one = write_folder(tmp_path / "one", 2, {"red": (9, 9, 9)})
    assert "one class alone, red" in refused(one)
    empty = write_folder(tmp_path / "empty", 2)
    (empty / "white").mkdir()
    assert "the class white" in refused(empty)
    twice = tmp_path / "twice"
    for split in ("train", "val", "valid"):
        write_folder(twice / split, 1)
    assert "two spellings of one split, valid/ and val/" in refused(twice)
    unseen = tmp_path / "unseen"
    write_folder(unseen / "train", 1)
    write_folder(unseen / "test", 1, {"red": (9, 9, 9), "violet": (9, 9, 9)})
    assert "has the class violet, which the images to train on have not" in refused(unseen)
    untrained = tmp_path / "untrained"
    write_folder(untrained / "val", 1)
    assert "has val/ but no train/" in refused(untrained)
    hollow = tmp_path / "hollow"
    write_folder(hollow / "train", 1)
    (hollow / "test").mkdir()
    assert "the test split" in refused(hollow)


# Stanford Dogs

BREEDS = {"n02085620-Chihuahua": (90, 60, 30), "n02085782-Japanese_spaniel": (200, 200, 190)}


def cells(texts: list[str]) -> np.ndarray:
    """A column of MATLAB cells, as the lists of the archive hold them."""
    out = np.empty((len(texts), 1), dtype=object)
    out[:, 0] = texts
    return out


@pytest.fixture
def dogs(tmp_path):
    write_folder(tmp_path / "Images", 3, BREEDS)
    (tmp_path / "Annotation").mkdir()
    for split, rows in (("train", (0, 2)), ("test", (1,))):
        listed = [f"{breed}/{row:03d}.png" for breed in BREEDS for row in rows]
        labels = np.repeat([[1], [2]], len(rows), axis=0)
        savemat(tmp_path / f"{split}_list.mat", {"file_list": cells(listed), "labels": labels})
    return tmp_path


def test_stanford_dogs_are_read_as_their_archive_unpacks(dogs):
    found = folders.find(dogs)
    assert found.classes == ("Chihuahua", "Japanese spaniel")
    assert found.splits["train"].labels == [0, 0, 1, 1]
    assert names(found.splits["test"]) == [f"{breed}/001.png" for breed in BREEDS]
    (dogs / "lists").mkdir()
    for name in ("train_list.mat", "test_list.mat"):
        (dogs / name).rename(dogs / "lists" / name)
    assert folders.find(dogs) == found


def test_lists_of_dogs_that_do_not_fit_are_one_line(dogs):
    (dogs / "Images" / "n02085620-Chihuahua" / "002.png").unlink()
    assert "1 images of" in refused(dogs)
    assert "n02085620-Chihuahua/002.png" in refused(dogs)
    (dogs / "train_list.mat").write_bytes(b"MATLAB? no.")
    assert "is no list of Stanford Dogs" in refused(dogs)
    (dogs / "train_list.mat").unlink()
    assert "no train_list.mat" in refused(dogs)
