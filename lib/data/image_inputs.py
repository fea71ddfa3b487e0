"""Images to show a network, by name: an image file, or an example of a data set such as `digits:7`."""

import glob
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lib.data import datasets, fitting, folders, images, photographs
from lib.data.datasets import FOLDER
from lib.data.fitting import AS_TRAINED, Fit, Original
from lib.data.preprocessing import Preprocessing, warn_of_negatives
from lib.runtime.errors import UserError
from lib.runtime.files import existing_file
from lib.runtime.spelling import whole_number

MOST_DECODED = 12  # files that are decoded once more, so that a bad one is told of before a network is loaded


class ImageInput(NamedTuple):
    """An image as a network sees it.

    Attributes:
        name: name in titles and file names: the image file's name without its suffix, or e.g. `digits-7`.
        pixels: (C, H, W) in [0, 1], on the CPU: the part that the network sees.
        label: name of its class, if it is from a data set.
        original: the photograph of which it is a part; None for an example of a data set.
    """

    name: str
    pixels: Tensor
    label: str | None = None
    original: Original | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read(
    inputs: Sequence[str],
    preprocessing: Preprocessing,
    data_dir: str | Path = "data",
    *,
    invert: bool = False,
    fit: Fit = AS_TRAINED,
) -> list[ImageInput]:
    """Read the images that `inputs` name, in the size and with the channels of a network.

    Args:
        inputs: image files of any kind, or examples of a data set's validation split: `digits:7` is the
            eighth, `folder:DIR:7` the eighth of a folder of images.
        preprocessing: preprocessing of the network.
        data_dir: folder of the data sets; see `lib.data.images.load`.
        invert: invert image files, because they are negatives of the network's training images.
        fit: how an image file becomes an input.

    Raises:
        UserError: no such file, data set or example; a file that cannot be read as an image.
    """
    reader = Reader(preprocessing, data_dir, invert=invert, fit=fit)
    found = [reader.read(*each) for each in zip(inputs, names(inputs), strict=True)]
    reader.warn()
    return found


def expanded(inputs: Sequence[str]) -> list[str]:
    """Return the image files and examples that `inputs` name, in order.

    A folder stands for all images in it and below, a pattern such as `photos/*.jpg` for the images that
    match, both sorted.

    Raises:
        UserError: a folder has no images, or nothing matches a pattern.
    """
    return [found for each in inputs for found in _expanded(each)]


def _expanded(name: str) -> list[str]:
    if os.path.isdir(name):
        found = folders.images_below(name)
        if not found:
            raise UserError(f"there are no images in the folder {name}, nor below it")
        return found
    if os.path.exists(name) or not is_file(name) or not glob.has_magic(name):
        return [name]
    matches = sorted(glob.glob(os.path.expanduser(name), recursive=True))
    found = [path for path in matches if os.path.isfile(path) and folders.is_image_file(path)]
    if not found:
        raise UserError(f"no image matches {name}")
    return found


def names(inputs: Sequence[str]) -> list[str]:
    """Return a name for each image file or example, for titles and file names; no two are equal.

    The second of two files with the same name in different folders is called e.g. `cat-2`.
    """
    found: dict[str, None] = {}
    for each in inputs:
        name = number = _name(each)
        count = itertools.count(2)
        while number in found:
            number = f"{name}-{next(count)}"
        found[number] = None
    return list(found)


def _name(given: str) -> str:
    if is_file(given):
        return Path(given).stem
    dataset, _, index = given.rpartition(":")
    folder = _folder_of(dataset)
    return f"{Path(folder).resolve().name if folder else dataset}-{_number(index)}"


def check(inputs: Sequence[str]) -> None:
    """Check, before a network is downloaded or loaded, that all inputs can be read.

    Of many files, only that they exist: to decode each of them twice would take too long.

    Raises:
        UserError: one cannot; the message names the first.
    """
    few = len(inputs) <= MOST_DECODED
    for name in inputs:
        dataset = name.rpartition(":")[0]
        if is_file(name):
            photographs.read(name) if few else existing_file(name)
        elif _folder_of(dataset):
            folders.find(_folder_of(dataset))
        else:
            datasets.find(dataset)


def _number(index: str) -> int:
    number = whole_number(index)
    assert number is not None  # `is_file` has looked
    return number


def is_file(name: str) -> bool:
    """Return whether an input's name is that of a file: `digits:7` is one only if such a file exists."""
    _, colon, index = name.rpartition(":")
    return not (colon and whole_number(index) is not None) or os.path.exists(name)


class Reader:
    """Reads inputs for one network one by one, and each data set only once; for the arguments, see `read`."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        data_dir: str | Path = "data",
        *,
        invert: bool = False,
        fit: Fit = AS_TRAINED,
    ) -> None:
        self._preprocessing, self._data_dir, self._invert = preprocessing, Path(data_dir), invert
        self._fit = fit
        self._known: dict[str, datasets.Labelled] = {}
        self._negatives: list[str] = []

    def read(self, given: str, name: str) -> ImageInput:
        """Read an image file or an example, and call it `name`.

        Raises:
            UserError: as the function `read` does.
        """
        if is_file(given):
            image = self._of_file(given, name)
            if self._preprocessing.looks_negative(image.pixels):
                self._negatives.append(given)
            return image
        dataset, _, index = given.rpartition(":")
        if _folder_of(dataset):
            return self._of_folder(_folder_of(dataset), _number(index), name)
        if dataset not in self._known:
            entry = datasets.find(dataset)
            self._known[dataset] = entry.read(self._data_dir, entry.options({}))
        return self._example(self._known[dataset], dataset, _number(index), name)

    def warn(self) -> None:
        """Warn of the image files read since the last call that look like negatives."""
        warn_of_negatives(self._negatives, inverted=self._invert)
        self._negatives = []

    def _of_file(self, path: str, name: str, label: str | None = None) -> ImageInput:
        photograph = photographs.read(path)
        found = fitting.fitted(photograph, self._preprocessing, self._fit, path)
        pixels = 1 - found.pixels if self._invert else found.pixels
        return ImageInput(name, pixels, label, fitting.original(photograph, found))

    def _of_folder(self, folder: str, index: int, name: str) -> ImageInput:
        found = folders.find(folder)
        files = found.splits[unseen(found.splits)]
        _check_index(f"{FOLDER}:{folder}", index, len(files.paths))
        return self._of_file(files.paths[index], name, found.classes[files.labels[index]])

    def _example(self, data: datasets.Labelled, dataset: str, index: int, name: str) -> ImageInput:
        split = data.splits[unseen(data.splits)]
        _check_index(dataset, index, len(split.labels))
        image, label = split.images[index], int(split.labels[index])
        pixels = images.resize(image[None], self._preprocessing.size)[0]
        channels = self._preprocessing.channels
        if len(pixels) != channels:
            pixels = pixels.mean(0, keepdim=True).expand(channels, -1, -1).contiguous()
        return ImageInput(name, pixels, data.classes[label])


def unseen(splits: Collection[str]) -> str:
    """Return the name of the split to show: validation or test, which networks are not trained on, if any."""
    return next(name for name in ("valid", "test", "train") if name in splits)


def _check_index(dataset: str, index: int, count: int) -> None:
    if index >= count:
        raise UserError(f"there is no {dataset}:{index}: its validation split has 0 to {count - 1}")


def _folder_of(dataset: str) -> str:
    """Return DIR of `folder:DIR`, or an empty text for the name of another data set."""
    kind, _, folder = dataset.partition(":")
    return folder if kind == FOLDER else ""
