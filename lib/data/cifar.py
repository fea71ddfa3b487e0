"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from torchvision's files: pickles of images and labels."""

import codecs
import io
import pickle
from collections.abc import Mapping
from contextlib import redirect_stdout
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from lib.data import folders
from lib.data.images import Split
from lib.runtime import distributed
from lib.runtime.errors import UserError

SIZE = 32


class _Files(NamedTuple):
    """The location of a data set below torchvision's root folder, and the keys of labels in its files."""

    torchvision_name: str
    folder: str
    splits: Mapping[str, tuple[str, ...]]
    names_file: str
    keys: Mapping[str, tuple[bytes, bytes]]  # level of labels to the keys of labels and of class names
    known_classes: tuple[str, ...] | None = None


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_DATASETS = {
    "cifar10": _Files(
        "CIFAR10",
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        {"": (b"labels", b"label_names")},
        CLASSES,
    ),
    "cifar100": _Files(
        "CIFAR100",
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        {
            "fine": (b"fine_labels", b"fine_label_names"),
            "coarse": (b"coarse_labels", b"coarse_label_names"),
        },
    ),
}

# All objects that pickles of arrays and lists refer to; one of them has an old and a new address.
_HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): codecs.encode,
}


def load(
    data_dir: str | Path, name: str = "cifar10", options: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Split]:
    """Return the splits `train` and `test`: pixels in [0, 1], (N, 3, 32, 32), and labels.

    Args:
        data_dir: torchvision's root folder; missing files are downloaded into it through torchvision.
        name: `cifar10` or `cifar100`.
        options: only for `cifar100`: {"labels": "fine"} or {"labels": "coarse"}.

    Raises:
        UserError: files are missing and cannot be downloaded, or are damaged.
    """
    files = _DATASETS[name]
    folder = _present(Path(data_dir), name)
    key, _ = files.keys[options.get("labels", "")]
    count = len(classes(data_dir, name, options))
    return {
        split: _split([folder / each for each in names], key, count, name)
        for split, names in files.splits.items()
    }


def classes(
    data_dir: str | Path, name: str = "cifar10", options: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, ...]:
    """Return the names of the classes (CIFAR-100's are in its file `meta`); arguments as for `load`."""
    files = _DATASETS[name]
    if files.known_classes:
        return files.known_classes
    path = _present(Path(data_dir), name) / files.names_file
    try:
        with path.open("rb") as file:
            names = _Unpickler(file, encoding="bytes").load()[files.keys[options["labels"]][1]]
        return tuple(each.decode() for each in names)
    except Exception:  # bytes that are no pickle make the unpickler raise nearly anything
        raise UserError(f"{path} does not hold the names of the classes of {name}, or is damaged") from None


def _present(data_dir: Path, name: str) -> Path:
    """Return the folder of the files, after downloading them if any is missing."""
    files = _DATASETS[name]
    folder = data_dir / files.folder
    needed = [each for names in files.splits.values() for each in names]
    if not files.known_classes:
        needed.append(files.names_file)
    with distributed.main_first():
        if not all((folder / each).is_file() for each in needed):
            _download(data_dir, name, needed)
    return folder


def _split(paths: list[Path], key: bytes, classes: int, name: str) -> Split:
    parts = [_read(path, key, classes, name) for path in paths]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, SIZE, SIZE)
    labels = torch.tensor([label for _, labels in parts for label in labels], dtype=torch.long)
    return Split(torch.from_numpy(images).float().div_(255), labels)


def _read(path: Path, key: bytes, classes: int, name: str) -> tuple[np.ndarray, list[int]]:
    """Read the images (N, 3072), uint8, and the labels of one file."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        images, labels = np.asarray(content[b"data"]), [int(label) for label in content[key]]
        sound = images.dtype == np.uint8 and images.shape == (len(labels), 3 * SIZE * SIZE)
        sound = sound and set(labels) <= set(range(classes)) and len(labels) > 0
    except Exception:  # bytes that are no pickle make the unpickler raise nearly anything
        sound = False
    if not sound:
        raise UserError(f"{path} is no file of {_spelled(name)}, or is damaged")
    return images, labels


def _spelled(name: str) -> str:
    return name.replace("cifar", "CIFAR-")


class _Unpickler(pickle.Unpickler):
    """An unpickler that only makes arrays, because a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str):
        return _HARMLESS[module, name]


def _download(data_dir: Path, name: str, needed: list[str]) -> None:
    from torchvision import datasets

    files = _DATASETS[name]
    folders.refuse_to_download(data_dir, name)
    try:
        # torchvision prints to standard output, which belongs to the log. Its progress bar (stderr) stays.
        with redirect_stdout(io.StringIO()):
            getattr(datasets, files.torchvision_name)(root=str(data_dir), download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded ({cause}): put {', '.join(needed)} "
            f"into {data_dir / files.folder}, or name another --data-dir"
        ) from None
