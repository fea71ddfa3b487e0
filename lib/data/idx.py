"""Data sets in MNIST's format (idx files): MNIST, Fashion-MNIST, Kuzushiji-MNIST and EMNIST."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from lib.data import folders
from lib.data.images import Split
from lib.runtime import distributed
from lib.runtime.errors import UserError

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KUZUSHIJI_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

_MOST_BYTES = 2**32  # MNIST has 47 million, EMNIST 547 million
_PART = 2**20

_UPPER, _LOWER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), tuple("abcdefghijklmnopqrstuvwxyz")
# Letters whose lower-case form differs from the capital, so that EMNIST makes it a class of its own.
_OWN_LOWER = tuple("abdefghnqrt")
_EMNIST_CLASSES = {
    "letters": _LOWER,
    "balanced": DIGIT_NAMES + _UPPER + _OWN_LOWER,
    "digits": DIGIT_NAMES,
    "mnist": DIGIT_NAMES,
    "byclass": DIGIT_NAMES + _UPPER + _LOWER,
    "bymerge": DIGIT_NAMES + _UPPER + _OWN_LOWER,
}


class IdxDataSet(NamedTuple):
    """A data set in MNIST's format.

    Attributes:
        name: name of the data set in `--dataset`.
        folder: name of torchvision's class that downloads it, and of the folder that the class downloads to.
        classes: names of the classes.
        prefixes: first parts of the file names of `train` and `test`.
        first_label: number of the first class in the files.
        is_transposed: whether images are stored column by column.
        download: further arguments of torchvision's class.
    """

    name: str
    folder: str
    classes: tuple[str, ...]
    prefixes: Mapping[str, str] = MappingProxyType({"train": "train", "test": "t10k"})
    first_label: int = 0
    is_transposed: bool = False
    download: Mapping[str, str] = MappingProxyType({})


_DATA_SETS = {
    "mnist": IdxDataSet("mnist", "MNIST", DIGIT_NAMES),
    "fashion-mnist": IdxDataSet("fashion-mnist", "FashionMNIST", FASHION_NAMES),
    "kmnist": IdxDataSet("kmnist", "KMNIST", KUZUSHIJI_NAMES),
}


def find(name: str, options: Mapping[str, str]) -> IdxDataSet:
    """Return a data set in MNIST's format; `options` names the split of EMNIST (Cohen et al. 2017)."""
    if name != "emnist":
        return _DATA_SETS[name]
    split = options["split"]
    return IdxDataSet(
        name,
        "EMNIST",
        _EMNIST_CLASSES[split],
        {each: f"emnist-{split}-{each}" for each in ("train", "test")},
        first_label=1 if split == "letters" else 0,
        is_transposed=True,
        download={"split": split},
    )


def read_split(data_set: IdxDataSet, data_dir: Path, split: str) -> Split:
    """Read a split of a data set in MNIST's format; missing files are downloaded through torchvision.

    Raises:
        UserError: files are missing and cannot be downloaded, or are damaged.
    """
    prefix = data_set.prefixes[split]
    with distributed.main_first():
        if _found(data_set, data_dir, prefix) is None:
            _download(data_set, data_dir)
    files = _found(data_set, data_dir, prefix)
    if files is None:
        raise UserError(f"torchvision has downloaded {data_set.name}, but not all files of {prefix}")
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1).long() - data_set.first_label
    if len(images) != len(labels):
        raise UserError(f"{files[0]} holds {len(images)} images but {files[1]} {len(labels)} labels")
    last = data_set.first_label + len(data_set.classes) - 1
    if not len(labels) or labels.min() < 0 or labels.max() >= len(data_set.classes):
        raise UserError(f"{files[1]} does not hold labels {data_set.first_label} to {last}")
    images = images.transpose(1, 2).contiguous() if data_set.is_transposed else images
    return Split(images.float().div_(255).unsqueeze(1), labels)


def _found(data_set: IdxDataSet, data_dir: Path, prefix: str) -> tuple[Path, Path] | None:
    """Return the files of the images and the labels of a split; None if there are no such files.

    They lie where torchvision puts them, or directly in the folder of the data set or in `data_dir`. Archives
    call them `train-images.idx3-ubyte`, too, and Kaggle's has a folder around each.
    """
    own = data_dir / data_set.folder
    folders = [own / "raw", own]
    # Fashion-MNIST's files have the same names as MNIST's: in a folder for any data set they are MNIST's.
    if data_set.name in ("mnist", "emnist") or data_set.name.split("-")[0] in str(data_dir).lower():
        folders += [data_dir / "raw", data_dir]
    for folder in folders:
        images, labels = (
            _file_in(folder, f"{prefix}-{part}") for part in ("images{}idx3-ubyte", "labels{}idx1-ubyte")
        )
        if images and labels:
            return images, labels
    return None


def _file_in(folder: Path, pattern: str) -> Path | None:
    spellings = (f"{pattern.format(mark)}{packed}" for mark in "-." for packed in ("", ".gz"))
    candidates = (path for name in spellings for path in (folder / name, folder / name / name))
    return next((path for path in candidates if path.is_file()), None)


def _download(data_set: IdxDataSet, data_dir: Path) -> None:
    from torchvision import datasets as torchvision_datasets

    raw = data_dir / data_set.folder / "raw"
    folders.refuse_to_download(data_dir, data_set.name)
    made = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        # torchvision prints to standard output, which belongs to the log. Its progress bar (stderr) stays.
        with redirect_stdout(io.StringIO()):
            kind = getattr(torchvision_datasets, data_set.folder)
            kind(root=str(data_dir), download=True, **data_set.download)
    except (OSError, RuntimeError, HTTPException) as error:
        with suppress(OSError):  # the folder is not empty
            for folder in made:
                folder.rmdir()
        parts = ("images-idx3", "labels-idx1")
        names = [f"{prefix}-{part}-ubyte" for prefix in data_set.prefixes.values() for part in parts]
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{data_set.name} is not in {data_dir} and could not be downloaded ({cause}): "
            f"put {', '.join(names)} (plain or .gz) into {raw}, name another --data-dir, "
            f"or take --dataset digits, which needs no download"
        ) from None


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes in the idx format (http://yann.lecun.com/exdb/mnist), plain or gzipped.

    Returns:
        uint8 tensor of `dimensions` dimensions.

    Raises:
        UserError: the magic number is wrong, the file is cut short or longer than it says, or a gzipped file
            is damaged.
    """
    try:
        with path.open("rb") as file:
            # The suffix may be wrong: some programs unpack what they download and leave the name.
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as content:
            return _read_idx(cast(IO[bytes], content), path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _read_idx(file: IO[bytes], path: Path, dimensions: int) -> Tensor:
    header = 4 + 4 * dimensions
    magic = 0x0800 + dimensions  # 0x08: unsigned bytes
    start = file.read(header)
    if len(start) < header:
        raise UserError(f"{path} is cut short: {len(start)} bytes are less than its header of {header}")
    found, *shape = struct.unpack(f">{1 + dimensions}I", start)
    if found != magic:
        raise UserError(f"{path} is no idx file of {dimensions} dimensions: magic {found:#x}, not {magic:#x}")
    expected = math.prod(shape)
    if expected > _MOST_BYTES:
        raise UserError(f"{path} is damaged or cut short: its header promises {expected:,} bytes")
    content = bytearray()
    # In parts, because `read` would reserve what a damaged header promises; and one byte more than that.
    while part := file.read(min(_PART, expected + 1 - len(content))):
        content += part
    if len(content) != expected:
        wrong = (
            f"cut short: {header + len(content)}"
            if len(content) < expected
            else f"too long: over {header + expected}"
        )
        raise UserError(f"{path} is {wrong} bytes, its header promises {header + expected}")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape))
