"""Folders of images: find their files, classes and splits."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lib.data.image_decoding import is_image
from lib.runtime.errors import UserError, warn

# Files with these suffixes are taken for images without opening them; of others, the content tells.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
# Folders that archivers and file servers add.
FOREIGN = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
SPELLINGS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
MOST_NAMED = 3
_FEW_FOLDERS = 20  # are looked into for images


class Files(NamedTuple):
    """Image files and their class indices. Paths are `str`: 50,000 `Path` objects are slow to make."""

    paths: list[str]
    labels: list[int]


class Folder(NamedTuple):
    """The files of each split (`train`, and `valid` or `test` or both), and the names of the classes."""

    splits: dict[str, Files]
    classes: tuple[str, ...]


def find(folder: str | Path, only: Sequence[str] = ()) -> Folder:
    """Find the images of a folder that has one of these layouts.

        CLASS/*.jpg                          all images belong to `train`
        train/CLASS/*.jpg, valid/…, test/…   only `train` is required; SPELLINGS lists the accepted names
        Images/nXXXXXXXX-CLASS/*.jpg         Stanford Dogs, with train_list.mat and test_list.mat beside
                                             Images/ or in lists/

    Names of splits may have capitals. Classes are numbered in alphabetical order. Hidden files are ignored;
    other files and folders beside the images, and a test split without classes, are left out with a warning.

    Args:
        folder: the folder of images.
        only: names of the classes to keep; all if empty.

    Raises:
        UserError: the folder does not exist or has no images or fewer than two classes; a class has no images
            to train on, or occurs in another split alone; a split has two spellings; `only` names no class.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = _stanford(folder) or _splits(folder)
    if only:
        found = _selected(found, only, folder)
    return _checked(found, folder)


def _selected(found: Folder, only: Sequence[str], folder: Path) -> Folder:
    unknown = [name for name in only if name not in found.classes]
    if unknown:
        raise UserError(f"there is no class {unknown[0]!r} in {folder}: there are {', '.join(found.classes)}")
    classes = tuple(name for name in found.classes if name in only)
    number = {found.classes.index(name): new for new, name in enumerate(classes)}

    def select(files: Files) -> Files:
        kept = [(path, number[label]) for path, label in zip(*files, strict=True) if label in number]
        return Files([path for path, _ in kept], [label for _, label in kept])

    return Folder({split: select(files) for split, files in found.splits.items()}, classes)


def _checked(found: Folder, folder: Path) -> Folder:
    if not found.classes:
        raise UserError(f"{folder} has no folders of classes: images go into {folder / 'CLASS'}")
    if len(found.classes) < 2:
        raise UserError(f"{folder} has one class alone, {found.classes[0]}: a classifier needs two")
    present = set(found.splits["train"].labels)
    empty = [name for label, name in enumerate(found.classes) if label not in present]
    if empty:
        raise UserError(f"the class {first_few(empty)} in {folder} has no images to train on")
    for split, files in found.splits.items():
        if not files.paths:
            raise UserError(f"the {split} split of {folder} has no images")
    return found


def first_few(names: Sequence[str]) -> str:
    """Join the first few of `names`, and say how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _splits(folder: Path) -> Folder:
    below = {split: _spelled(folder, names) for split, names in SPELLINGS.items()}
    there = {split: path for split, path in below.items() if path}
    if there and "train" not in there:
        other = next(iter(there.values()))
        raise UserError(f"{folder} has {other.name}/ but no train/ to train on")
    roots = there or {"train": folder}
    classes = tuple(sorted(_class_folders(roots["train"])))
    if "test" in roots and classes and _is_unlabelled(roots["test"], classes):
        warn(f"{roots.pop('test')} is left out: its images are not in folders of classes")
    strangers: list[str] = []
    splits = {split: _files(root, classes, strangers) for split, root in roots.items()}
    if strangers:
        warn(f"left out in {folder}, because they are not image files: {first_few(strangers)}")
    return Folder(splits, classes)


def _spelled(folder: Path, names: Sequence[str]) -> Path | None:
    with os.scandir(folder) as entries:
        there = [Path(entry.path) for entry in entries if entry.name.lower() in names and entry.is_dir()]
    there.sort(key=lambda path: (names.index(path.name.lower()), path.name))
    if len(there) > 1:
        raise UserError(f"{folder} has two spellings of one split, {there[0].name}/ and {there[1].name}/")
    return there[0] if there else None


def _class_folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return [
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in FOREIGN
        ]


def _is_unlabelled(root: Path, classes: Sequence[str]) -> bool:
    """Return whether a split has images, but does not say their classes.

    They lie in it directly, or in one folder that has another name than any class, as torchvision's
    `ImageFolder` wants it (`test/unknown/`).
    """
    inside = _class_folders(root)
    if not inside:
        return any(is_image_entry(entry) for entry in os.scandir(root))
    return len(inside) == 1 and inside[0] not in classes


def is_image_entry(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry of a folder is an image: by its suffix, or else by how its content begins."""
    return entry.is_file() and not entry.name.startswith(".") and is_image_file(entry.path)


def is_image_file(path: str) -> bool:
    """Return whether a regular file is an image: by its suffix, or else by how its content begins."""
    if path.lower().endswith(SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return is_image(file.read(32))
    except OSError:
        return False


def images_below(folder: str | Path) -> list[str]:
    """Return the paths of all images in a folder and in the folders below it, sorted.

    Hidden files and folders, and those that archivers add, are left out.
    """
    found: list[str] = []
    for root, below, _ in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith(".") and name.lower() not in FOREIGN)
        with os.scandir(root) as entries:
            found += [entry.path for entry in entries if is_image_entry(entry)]
    return sorted(found)


def refuse_to_download(data_dir: str | Path, name: str) -> None:
    """Raise a UserError if a data set would be downloaded into a folder of the user's own images."""
    folders = [Path(data_dir)]
    for _ in range(3):  # images, CLASS/images, train/CLASS/images
        entries = [each for folder in folders if folder.is_dir() for each in os.scandir(folder)]
        if any(each.name.lower().endswith(SUFFIXES) and each.is_file() for each in entries):
            raise UserError(
                f"{data_dir} holds images, and not {name}: give --dataset folder for these images, or "
                f"another --data-dir to download {name} into"
            )
        folders = [Path(each.path) for each in entries if each.is_dir()][:_FEW_FOLDERS]


def _files(root: Path, classes: Sequence[str], strangers: list[str]) -> Files:
    """Return the images of one split; append anything else in its class folders to `strangers`."""
    found = Files([], [])
    for name in sorted(_class_folders(root)):
        if name not in classes:
            raise UserError(f"{root} has the class {name}, which the images to train on have not")
        with os.scandir(root / name) as visited:
            entries = sorted(
                (each for each in visited if not each.name.startswith(".")), key=lambda e: e.name
            )
        images = [each for each in entries if is_image_entry(each)]
        kept = {each.name for each in images}
        strangers += [f"{name}/{each.name}" for each in entries if each.name not in kept]
        found.paths.extend(each.path for each in images)
        found.labels.extend([classes.index(name)] * len(images))
    return found


def _stanford(folder: Path) -> Folder | None:
    """Find the images of Stanford Dogs (Khosla et al. 2011); return None if the folder has another layout.

    Its two lists name each image with its class, e.g. `n02085620-Chihuahua/n02085620_5927.jpg`.
    """
    images = folder / "Images"
    lists = {split: _list_file(folder, f"{split}_list.mat") for split in ("train", "test")}
    if not images.is_dir() or not any(lists.values()):
        return None
    missing = [f"{split}_list.mat" for split, path in lists.items() if not path]
    if missing:
        raise UserError(f"{folder} has Images/ and the list of one split, but no {missing[0]}")
    names = {split: _listed(path) for split, path in lists.items() if path}
    folders = sorted({name.partition("/")[0] for name in names["train"]})
    splits = {}
    for split, listed in names.items():
        unseen = {name.partition("/")[0] for name in listed}.difference(folders)
        if unseen:
            raise UserError(
                f"{lists[split]} has the class {min(unseen)}, which {lists['train']} does not have"
            )
        absent = [name for name in listed if not (images / name).is_file()]
        if absent:
            raise UserError(
                f"{len(absent)} images of {lists[split]} are not in {images}: {first_few(absent)}"
            )
        numbers = {name: number for number, name in enumerate(folders)}
        splits[split] = Files(
            [str(images / name) for name in listed], [numbers[name.partition("/")[0]] for name in listed]
        )
    return Folder(splits, tuple(map(_breed, folders)))


def _list_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / "lists" / name) if path.is_file()), None)


def _listed(path: Path) -> list[str]:
    from scipy.io import loadmat

    try:
        return [str(name.item()) for name in loadmat(path)["file_list"].ravel()]
    except Exception:  # scipy raises many kinds of exceptions on damaged MATLAB files
        raise UserError(f"{path} is no list of Stanford Dogs, or is damaged") from None


def _breed(name: str) -> str:
    """Return the breed of a class folder: `Chihuahua` of `n02085620-Chihuahua`."""
    return re.sub(r"^n\d{8}-", "", name).replace("_", " ")
