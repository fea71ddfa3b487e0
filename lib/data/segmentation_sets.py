"""Table of the data sets of images with masks, for every script that takes them.

A new data set needs one entry here and a function that reads its files. `--dataset` and `--help` use the
table. Importing this module does not import torch, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib.data.masks import Labelled, Reading

FOLDER = "folder"


@dataclass(frozen=True)
class MaskedSet:
    """An entry of the table.

    Attributes:
        name: name of the data set in flags.
        read: function from a folder and settings to the splits; it may download missing files.
        classes: names of the classes; empty if the folder tells them.
        ignore: label of the pixels that have no class.
        offline: whether it needs no files.
    """

    name: str
    read: Callable[[Path, Reading], Labelled]
    classes: tuple[str, ...] = ()
    ignore: int = 255
    offline: bool = False


def _read_camvid(folder: Path, reading: Reading) -> Labelled:
    from lib.data import mask_files

    return mask_files.read(mask_files.camvid(folder), reading)


def _read_voc(folder: Path, reading: Reading) -> Labelled:
    from lib.data import mask_files

    return mask_files.read(mask_files.voc(folder), reading)


def _read_folder(folder: Path, reading: Reading) -> Labelled:
    from lib.data import mask_files

    return mask_files.read(mask_files.folder(folder), reading)


def _make_shapes(_folder: Path, reading: Reading) -> Labelled:
    from lib.data import shapes

    return shapes.make(reading)


_CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car")
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train"),
    "tv/monitor",
)

_TABLE = (
    MaskedSet("camvid", _read_camvid, (*_CAMVID, "pedestrian", "bicyclist"), ignore=11),
    MaskedSet("voc", _read_voc, _VOC),
    MaskedSet("shapes", _make_shapes, ("background", "circle", "square", "triangle"), offline=True),
    MaskedSet(FOLDER, _read_folder),
)

MASKED_SETS: dict[str, MaskedSet] = {each.name: each for each in _TABLE}
