"""Table of the image data sets, for every script that takes images.

A new data set needs one entry here and a function that reads its files. `--dataset`, `--input NAME:INDEX` and
`--help` use the table. Importing this module does not import torch, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lib.runtime.errors import UserError

if TYPE_CHECKING:
    from lib.data.images import Split

FOLDER = "folder"  # a folder of the user's own images; see `lib.data.image_files`

Options = Mapping[str, str]


class Choice(NamedTuple):
    """A choice that a data set offers: name of its flag, its values (the first is the default), help text."""

    name: str
    values: tuple[str, ...]
    help: str


class Labelled(NamedTuple):
    """A data set in memory: the splits `train` and `valid`, `test` or both, and the names of the classes."""

    splits: dict[str, Split]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """An entry of the table.

    Attributes:
        name: name of the data set in flags.
        channels: 1 for grey images, 3 for coloured ones.
        read: function that reads the files below a folder; it downloads missing files.
        classes: function that returns the names of the classes without reading the images.
        choices: choices that the data set offers.
    """

    name: str
    channels: int
    read: Callable[[Path, Options], Labelled]
    classes: Callable[[Path, Options], tuple[str, ...]]
    choices: tuple[Choice, ...] = ()

    def options(self, given: Mapping[str, str | None]) -> Options:
        """Return the value of each choice: the given one, or else the default."""
        return {each.name: given.get(each.name) or each.values[0] for each in self.choices}


def _read_idx(name: str) -> Callable[[Path, Options], Labelled]:
    def read(data_dir: Path, options: Options) -> Labelled:
        from lib.data import idx

        found = idx.find(name, options)
        splits = {each: idx.read_split(found, data_dir, each) for each in ("train", "test")}
        return Labelled(splits, found.classes)

    return read


def _idx_classes(name: str) -> Callable[[Path, Options], tuple[str, ...]]:
    def classes(_data_dir: Path, options: Options) -> tuple[str, ...]:
        from lib.data import idx

        return idx.find(name, options).classes

    return classes


_DIGIT_NAMES = tuple("0123456789")


def _read_digits(_data_dir: Path, _options: Options) -> Labelled:
    from lib.data import images

    return Labelled(images.digits_of_scikit_learn(), _DIGIT_NAMES)


def _read_cifar(name: str) -> Callable[[Path, Options], Labelled]:
    def read(data_dir: Path, options: Options) -> Labelled:
        from lib.data import cifar

        return Labelled(cifar.load(data_dir, name, options), cifar.classes(data_dir, name, options))

    return read


def _cifar_classes(name: str) -> Callable[[Path, Options], tuple[str, ...]]:
    def classes(data_dir: Path, options: Options) -> tuple[str, ...]:
        from lib.data import cifar

        return cifar.classes(data_dir, name, options)

    return classes


def _grey(name: str, *choices: Choice) -> DataSet:
    return DataSet(name, 1, _read_idx(name), _idx_classes(name), choices)


_EMNIST_SPLITS = ("letters", "balanced", "digits", "mnist", "byclass", "bymerge")

_TABLE = (
    _grey("mnist"),
    _grey("fashion-mnist"),
    _grey("kmnist"),
    _grey("emnist", Choice("split", _EMNIST_SPLITS, "part of emnist to use")),
    DataSet("digits", 1, _read_digits, lambda _data_dir, _options: _DIGIT_NAMES),
    DataSet("cifar10", 3, _read_cifar("cifar10"), _cifar_classes("cifar10")),
    DataSet(
        "cifar100",
        3,
        _read_cifar("cifar100"),
        _cifar_classes("cifar100"),
        (
            Choice(
                "labels",
                ("fine", "coarse"),
                "classes of cifar100: its 100 fine classes, or its 20 coarse groups",
            ),
        ),
    ),
)

DATASETS: dict[str, DataSet] = {each.name: each for each in _TABLE}


def names(channels: int) -> tuple[str, ...]:
    """Return the names of the data sets with that number of channels, and `folder`."""
    return (*(name for name, each in DATASETS.items() if each.channels == channels), FOLDER)


def choices(dataset_names: Sequence[str]) -> list[Choice]:
    """Return the choices that the named data sets offer, for the flags of a script."""
    return [choice for name in dataset_names if name in DATASETS for choice in DATASETS[name].choices]


def find(name: str) -> DataSet:
    """Return the entry called `name`.

    Raises:
        UserError: there is none; the message lists the available names.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"there is no data set {name!r} here{hint}; there are {', '.join(DATASETS)} and {FOLDER}"
        )
    return DATASETS[name]
