"""Folders of faces (or any images without a task), and the sample of faces that ships with scikit-image."""

import os
from pathlib import Path

import numpy as np
import torch

from lib.data import folders
from lib.data.images import Split
from lib.runtime.errors import UserError

SAMPLE_FACES = 100  # the first half of scikit-image's sample; the second half shows no faces
WHOLE = "faces"  # name of the only class of images that lie in no subfolder


def find(folder: str | Path) -> folders.Folder:
    """Find the images of a folder, all in the split `train`; their subfolders are the classes.

    A class is a person or an attribute and may have one image alone. A folder that holds nothing but one
    folder of folders, as the archive of LFW does (lfw/NAME/*.jpg), is entered.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    inside = _subfolders(root)
    while len(inside) == 1 and not _images(root) and _subfolders(inside[0]):
        root, inside = inside[0], _subfolders(inside[0])
    found = {each.name: _images(each) for each in inside}
    if _images(root):
        found = {WHOLE: _images(root)} | found
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise UserError(f"{folder} has no images, neither directly nor in folders of people or attributes")
    files = folders.Files([], [])
    for label, paths in enumerate(found.values()):
        files.paths.extend(paths)
        files.labels.extend([label] * len(paths))
    return folders.Folder({"train": files}, tuple(found))


def _subfolders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in folders.FOREIGN
        ]
    return [root / name for name in sorted(names)]


def _images(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.path for entry in entries if folders.is_image_entry(entry))


def sample() -> Split:
    """Return the 100 faces of scikit-image's sample of LFW, (100, 1, 25, 25).

    Huang, Ramesh, Berg & Learned-Miller 2007, "Labeled Faces in the Wild".
    """
    from skimage.data import lfw_subset

    faces = np.asarray(lfw_subset(), dtype=np.float32)[:SAMPLE_FACES]
    return Split(torch.from_numpy(faces).clamp(0, 1).unsqueeze(1), torch.zeros(len(faces), dtype=torch.long))
