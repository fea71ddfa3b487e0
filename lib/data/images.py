"""Small images in memory: data sets in MNIST's format, and the digits that come with scikit-learn."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import datasets
from lib.data.batches import InOrder, Shuffled, TensorBatches, Transform
from lib.data.preprocessing import Preprocessing
from lib.runtime import distributed
from lib.runtime.errors import UserError

# The subset, the hold-out and the split of `digits` do not depend on --seed, so that seeds are compared on
# the same examples.
SPLIT_SEED = 0

# Largest side in pixels of images that are kept in memory; larger ones are resized or read for every batch.
LARGEST_IN_MEMORY = 64

# Numbers (pixels or features) per batch in evaluation. With four times as many, the activations of fast-cnn
# no longer fit in the caches, and evaluation takes 1.5 times as long. A fixed number of images would need
# memory that grows with their size.
_NUMBERS_A_BATCH = 250 * 3 * 32 * 32
_LEAST_A_BATCH = 16

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


class Family(NamedTuple):
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


_FAMILIES = {
    "mnist": Family("mnist", "MNIST", DIGIT_NAMES),
    "fashion-mnist": Family("fashion-mnist", "FashionMNIST", FASHION_NAMES),
    "kmnist": Family("kmnist", "KMNIST", KUZUSHIJI_NAMES),
}


def family(name: str, options: Mapping[str, str]) -> Family:
    """Return a data set in MNIST's format; `options` names the split of EMNIST (Cohen et al. 2017)."""
    if name != "emnist":
        return _FAMILIES[name]
    split = options["split"]
    return Family(
        name,
        "EMNIST",
        _EMNIST_CLASSES[split],
        {each: f"emnist-{split}-{each}" for each in ("train", "test")},
        first_label=1 if split == "letters" else 0,
        is_transposed=True,
        download={"split": split},
    )


# A function from names of augmentations to the transform that applies them, or None for no names.
Augmentation = Callable[[Sequence[str]], Transform | None]


class Examples(Protocol):
    """A split of a data set: a `Split` in memory, or `lib.data.image_files.FileSplit`."""

    @property
    def labels(self) -> Tensor:
        """The class of each example, (N,), int64."""

    def rows(self, index: Tensor) -> Self:
        """Return the examples that `index` selects, by numbers or by a mask."""

    def prepared(self, preprocessing: Preprocessing, device: torch.device) -> Self:
        """Return the examples on `device`, with pixels normalised for the network."""

    def in_order(self, *, distributed_over_ranks: bool = True) -> Iterable[Any]:
        """Return batches of (images, labels) in order: this rank's share of them, or all of them."""

    def shuffled(
        self, augment: Sequence[str], augmentation: Augmentation, *, batch_size: int, seed: int
    ) -> Shuffled:
        """Return shuffled and augmented batches for training."""


_Examples = TypeVar("_Examples", bound=Examples)


class Split(NamedTuple):
    """Images in memory; its methods are those of `Examples`.

    Attributes:
        images: (N, C, H, W), float32.
        labels: (N,), int64.
        side: side in pixels to which the images are resized batch by batch; None to leave them as they are.
    """

    images: Tensor
    labels: Tensor
    side: int | None = None

    def rows(self, index: Tensor) -> "Split":
        return self._replace(images=self.images[index], labels=self.labels[index])

    def resized(self, size: int) -> "Split":
        """Return the images with `size` px a side, resized at once or, if large, batch by batch."""
        if size <= LARGEST_IN_MEMORY:
            return self._replace(images=resize(self.images, size))
        return self._replace(side=size)

    def prepared(self, preprocessing: Preprocessing, device: torch.device) -> "Split":
        mean, std = _per_channel(preprocessing)
        # In float32 (p - 0) / 1 equals p exactly, so a copy of the whole data set is avoided.
        plain = not mean.any() and (std == 1).all()
        images = self.images if plain else (self.images - mean) / std
        return self._replace(images=images.to(device), labels=self.labels.to(device))

    def in_order(self, *, distributed_over_ranks: bool = True) -> InOrder:
        shape = self.images.shape[1:]
        numbers = shape.numel() if self.side is None else shape[0] * self.side**2
        return InOrder(
            self.images,
            self.labels,
            batch_size=max(_LEAST_A_BATCH, min(1000, _NUMBERS_A_BATCH // (numbers or 1))),
            transform=self._enlarge,
            distributed_over_ranks=distributed_over_ranks,
        )

    def shuffled(
        self, augment: Sequence[str], augmentation: Augmentation, *, batch_size: int, seed: int
    ) -> TensorBatches:
        augmented = augmentation(augment) or (lambda images: images)
        return TensorBatches(
            self.images,
            self.labels,
            batch_size=batch_size,
            seed=seed,
            transform=lambda images: augmented(self._enlarge(images)),
        )

    def _enlarge(self, images: Tensor) -> Tensor:
        return images if self.side is None else resize(images, self.side)


def _per_channel(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return mean, std


@dataclass(frozen=True)
class ImageData:
    """The training and validation splits, and a test split (used only once) if examples were held out.

    As loaded, the images are pixels in [0, 1]; `prepared` normalises them for the network. `preprocessing`
    describes the present state.
    """

    train: Examples
    valid: Examples
    test: Examples | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def prepared(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> "ImageData":
        """Return the data on `device`, with pixels normalised: (pixel − mean) / std."""
        how = replace(self.preprocessing, mean=tuple(mean), std=tuple(std))
        train, valid = (split.prepared(how, device) for split in (self.train, self.valid))
        test = self.test and self.test.prepared(how, device)
        return ImageData(train, valid, test, self.classes, how)

    def pixels(self, images: Tensor) -> Tensor:
        """Convert normalised images back to pixels in [0, 1], on the CPU."""
        mean, std = _per_channel(self.preprocessing)
        return images.cpu() * std + mean


def load(
    dataset: str,
    data_dir: str | Path,
    *,
    size: int = 28,
    limit: int | None = None,
    holdout: int = 0,
    options: Mapping[str, str | None] = MappingProxyType({}),
) -> ImageData:
    """Load a data set of grey images.

    Args:
        dataset: name of the data set in `lib.data.datasets`.
        data_dir: torchvision's root folder, e.g. `./data` for `./data/MNIST/raw/train-images-idx3-ubyte`;
            plain or `.gz` files. Missing files are downloaded through torchvision.
        size: side length of the images in pixels; images of another size are resized bilinearly.
        limit: keep a fixed stratified subset of this many training examples.
        holdout: validate on this many training examples instead of the official test split.
        options: values of the data set's choices; see `lib.data.datasets.Choice`.

    Raises:
        UserError: files are missing and cannot be downloaded, or are damaged, or a subset cannot be taken.
    """
    entry = datasets.find(dataset)
    splits, names = entry.read(Path(data_dir), entry.options(options))
    train, test = splits["train"], splits["test"]
    rest, held_out = _holdout(train, holdout, "--holdout") if holdout else (train, None)
    train = rest if limit is None else rest.rows(_stratified_rows(rest.labels, limit, "--limit"))
    how = Preprocessing(size, channels=1, mean=(0.0,), std=(1.0,))
    if held_out is None:
        return ImageData(train.resized(size), test.resized(size), None, names, how)
    return ImageData(train.resized(size), held_out.resized(size), test.resized(size), names, how)


def unscaled(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing without normalisation: pixels stay in [0, 1]."""
    channels = preprocessing.channels
    return replace(preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)


def divide(
    splits: Mapping[str, _Examples], valid_fraction: float | None, limit: int | None
) -> tuple[_Examples, _Examples, _Examples | None]:
    """Return the splits to train on, to validate on, and (if any) to test on once.

    Args:
        splits: `train`, and `valid`, `test` or both if the data set has them. Validation uses `valid`, or
            else `test`, or else a tenth of `train`.
        valid_fraction: use this stratified share of `train` for validation instead.
        limit: keep a fixed stratified subset of this many training examples.

    Raises:
        UserError: a subset cannot be taken, or there are two splits for validation.
    """
    train, valid, test = splits["train"], splits.get("valid"), splits.get("test")
    if valid_fraction is not None and valid is not None:
        raise UserError("--valid-fraction: there is a split to validate on already")
    if valid is None and test is not None and valid_fraction is None:
        valid, test = test, None
    elif valid is None:
        count = round((valid_fraction or 0.1) * len(train.labels))
        train, valid = _holdout(train, count, "--valid-fraction gives")
    if limit is not None:
        train = train.rows(_stratified_rows(train.labels, limit, "--limit"))
    return train, valid, test


def without_examples(class_names: Sequence[str], preprocessing: Preprocessing) -> ImageData:
    """Return data without examples, but with class names and preprocessing."""
    size, channels = preprocessing.size, preprocessing.channels
    nothing = Split(torch.zeros(0, channels, size, size), torch.zeros(0, dtype=torch.long))
    return ImageData(nothing, nothing, None, tuple(class_names), preprocessing)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images (N, C, H, W) bilinearly to (N, C, size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    # Antialiasing matters only for downscaling.
    shrinks = size < min(images.shape[-2:])
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)


def _holdout(train: _Examples, count: int, flag: str) -> tuple[_Examples, _Examples]:
    rows = _stratified_rows(train.labels, count, flag)
    kept = torch.ones(len(train.labels), dtype=torch.bool)
    kept[rows] = False
    return train.rows(kept), train.rows(rows)


def _stratified_rows(labels: Tensor, count: int, flag: str) -> Tensor:
    from sklearn.model_selection import train_test_split

    if count == len(labels) and flag == "--limit":
        return torch.arange(count)
    sizes = labels.unique(return_counts=True)[1]
    classes = len(sizes)
    if sizes.min() < 2:
        raise UserError(f"{flag} {count} cannot be stratified: a class has only one training example")
    if not classes <= count <= len(labels) - classes:
        raise UserError(
            f"{flag} {count} cannot be taken from {len(labels)} training examples of {classes} classes: "
            f"it may be {classes} to {len(labels) - classes}" + (", or all" if flag == "--limit" else "")
        )
    rows, _ = train_test_split(
        np.arange(len(labels)), train_size=count, stratify=labels.numpy(), random_state=SPLIT_SEED
    )
    return torch.from_numpy(np.sort(rows))


def digits_of_scikit_learn() -> dict[str, Split]:
    """Return scikit-learn's 1,797 digits, resized from 8×8 to 28×28 px: 1,437 in `train`, 360 in `test`.

    They are from UCI (Alpaydin & Kaynak 1998).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div_(digits.images.max()).unsqueeze(1)
    whole = Split(resize(images, 28), torch.from_numpy(digits.target).long())
    train, test = _holdout(whole, 360, "digits")
    return {"train": train, "test": test}


def idx_split(family: Family, data_dir: Path, split: str) -> Split:
    """Read a split of a data set in MNIST's format; missing files are downloaded through torchvision.

    Raises:
        UserError: files are missing and cannot be downloaded, or are damaged.
    """
    folder = data_dir / family.folder / "raw"
    names = [f"{family.prefixes[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    with distributed.main_first():
        if any(_find(folder, name) is None for name in names):
            _download(family, data_dir)
    files = [_find(folder, name) for name in names]
    if files[0] is None or files[1] is None:
        raise UserError(f"torchvision has downloaded {family.name}, but not {' and '.join(names)}")
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1).long() - family.first_label
    if len(images) != len(labels):
        raise UserError(f"{files[0]} holds {len(images)} images but {files[1]} {len(labels)} labels")
    last = family.first_label + len(family.classes) - 1
    if not len(labels) or labels.min() < 0 or labels.max() >= len(family.classes):
        raise UserError(f"{files[1]} does not hold labels {family.first_label} to {last}")
    images = images.transpose(1, 2).contiguous() if family.is_transposed else images
    return Split(images.float().div_(255).unsqueeze(1), labels)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(family: Family, data_dir: Path) -> None:
    from torchvision import datasets as torchvision_datasets

    raw = data_dir / family.folder / "raw"
    made = [folder for folder in (raw, *raw.parents) if not folder.exists()]
    try:
        # torchvision prints to standard output, which belongs to the log. Its progress bar (stderr) stays.
        with redirect_stdout(io.StringIO()):
            kind = getattr(torchvision_datasets, family.folder)
            kind(root=str(data_dir), download=True, **family.download)
    except (OSError, RuntimeError, HTTPException) as error:
        with suppress(OSError):  # the folder is not empty
            for folder in made:
                folder.rmdir()
        parts = ("images-idx3", "labels-idx1")
        names = [f"{prefix}-{part}-ubyte" for prefix in family.prefixes.values() for part in parts]
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{family.name} is not in {data_dir} and could not be downloaded ({cause}): "
            f"put {', '.join(names)} (plain or .gz) into {raw}, name another --data-dir, "
            f"or take --dataset digits, which needs no download"
        ) from None


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes in the idx format (http://yann.lecun.com/exdb/mnist), plain or .gz.

    Returns:
        uint8 tensor of `dimensions` dimensions.

    Raises:
        UserError: the magic number is wrong, the file is cut short, or a .gz file is not in gzip format.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    header = 4 + 4 * dimensions
    magic = 0x0800 + dimensions  # 0x08: unsigned bytes
    if len(content) < header:
        raise UserError(f"{path} is cut short: {len(content)} bytes are less than its header of {header}")
    found, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    if found != magic:
        raise UserError(f"{path} is no idx file of {dimensions} dimensions: magic {found:#x}, not {magic:#x}")
    expected = header + math.prod(shape)
    if len(content) != expected:
        wrong = "cut short" if len(content) < expected else "too long"
        raise UserError(f"{path} is {wrong}: {len(content)} bytes, its header promises {expected}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
