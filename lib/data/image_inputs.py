"""Images to show a network, by name: an image file, or an example of a data set such as `digits:7`."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lib.data import datasets, folders, images, photographs
from lib.data.datasets import FOLDER
from lib.data.preprocessing import Preprocessing, warn_of_negatives
from lib.runtime.errors import UserError


class ImageInput(NamedTuple):
    """An image as a network sees it.

    Attributes:
        name: name in titles and file names: the image file's name without its suffix, or e.g. `digits-7`.
        pixels: (C, H, W) in [0, 1], on the CPU: the crop that the network sees.
        label: name of its class, if it is from a data set.
    """

    name: str
    pixels: Tensor
    label: str | None = None


def read(
    inputs: Sequence[str],
    preprocessing: Preprocessing,
    data_dir: str | Path = "data",
    *,
    invert: bool = False,
) -> list[ImageInput]:
    """Read the images that `inputs` name, in the size and with the channels of a network.

    Args:
        inputs: image files of any kind, or examples of a data set's validation split: `digits:7` is the
            eighth, `folder:DIR:7` the eighth of a folder of images.
        preprocessing: preprocessing of the network.
        data_dir: folder of the data sets; see `lib.data.images.load`.
        invert: invert image files, because they are negatives of the network's training images.

    Raises:
        UserError: no such file, data set or example; a file that cannot be read as an image.
    """
    reader = _Reader(preprocessing, Path(data_dir), invert)
    found = [reader.read(name) for name in inputs]
    negatives = [
        name
        for name, image in zip(inputs, found, strict=True)
        if is_file(name) and preprocessing.looks_negative(image.pixels)
    ]
    warn_of_negatives(negatives, inverted=invert)
    return found


def check(inputs: Sequence[str]) -> None:
    """Check, before a network is downloaded or loaded, that all inputs can be read.

    Raises:
        UserError: one cannot; the message names the first.
    """
    for name in inputs:
        dataset = name.rpartition(":")[0]
        if is_file(name):
            photographs.read(name)
        elif _folder_of(dataset):
            folders.find(_folder_of(dataset))
        else:
            datasets.find(dataset)


def is_file(name: str) -> bool:
    """Return whether an input's name is that of a file: `digits:7` is one only if such a file exists."""
    _, colon, index = name.rpartition(":")
    return not (colon and index.isdecimal()) or os.path.exists(name)


class _Reader:
    """Reads inputs for one network, and each data set only once."""

    def __init__(self, preprocessing: Preprocessing, data_dir: Path, invert: bool) -> None:
        self._preprocessing, self._data_dir, self._invert = preprocessing, data_dir, invert
        self._known: dict[str, datasets.Labelled] = {}

    def read(self, name: str) -> ImageInput:
        if is_file(name):
            return ImageInput(Path(name).stem, self._of_file(name))
        dataset, _, index = name.rpartition(":")
        if _folder_of(dataset):
            return self._of_folder(_folder_of(dataset), int(index))
        if dataset not in self._known:
            entry = datasets.find(dataset)
            self._known[dataset] = entry.read(self._data_dir, entry.options({}))
        return self._example(self._known[dataset], dataset, int(index))

    def _of_file(self, path: str | Path) -> Tensor:
        pixels = self._preprocessing.read(path)
        return 1 - pixels if self._invert else pixels

    def _of_folder(self, folder: str, index: int) -> ImageInput:
        found = folders.find(folder)
        files = found.splits[_unseen(found.splits)]
        _check_index(f"{FOLDER}:{folder}", index, len(files.paths))
        pixels = self._of_file(files.paths[index])
        name = f"{Path(folder).resolve().name}-{index}"
        return ImageInput(name, pixels, found.classes[files.labels[index]])

    def _example(self, data: datasets.Labelled, dataset: str, index: int) -> ImageInput:
        split = data.splits[_unseen(data.splits)]
        _check_index(dataset, index, len(split.labels))
        image, label = split.images[index], int(split.labels[index])
        pixels = images.resize(image[None], self._preprocessing.size)[0]
        channels = self._preprocessing.channels
        if len(pixels) != channels:
            pixels = pixels.mean(0, keepdim=True).expand(channels, -1, -1).contiguous()
        return ImageInput(f"{dataset}-{index}", pixels, data.classes[label])


def _unseen(splits: Collection[str]) -> str:
    """Return the name of the split to show: validation or test, which networks are not trained on, if any."""
    return next(name for name in ("valid", "test", "train") if name in splits)


def _check_index(dataset: str, index: int, count: int) -> None:
    if index >= count:
        raise UserError(f"there is no {dataset}:{index}: its validation split has 0 to {count - 1}")


def _folder_of(dataset: str) -> str:
    """Return DIR of `folder:DIR`, or an empty text for the name of another data set."""
    kind, _, folder = dataset.partition(":")
    return folder if kind == FOLDER else ""
