"""Labelled images: their splits in memory, how these are divided and resized, and scikit-learn's digits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import datasets
from lib.data.batches import InOrder, Shuffled, TensorBatches, Transform
from lib.data.preprocessing import Preprocessing, is_light_on_dark
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

# A function from names of augmentations to the transform that applies them, or None for no names.
Augmentation = Callable[[Sequence[str]], Transform | None]


class Examples(Protocol):
    """A split of a data set: a `Split` in memory, or `lib.data.image_files.FileSplit`."""

    @property
    def labels(self) -> Tensor:
        """The class of each example, (N,), int64."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The path of each example, (N,), if each has a file of its own."""

    def rows(self, index: Tensor) -> Self:
        """Return the examples that `index` selects, by numbers or by a mask."""

    def relabelled(self, classes: Tensor) -> Self:
        """Return the examples with the class `classes[i]` for i."""

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
        names: path of each image, (N,), if each has a file of its own.
    """

    images: Tensor
    labels: Tensor
    side: int | None = None
    names: tuple[str, ...] | None = None

    def rows(self, index: Tensor) -> "Split":
        names = self.names
        if names is not None:
            numbers = torch.arange(len(names))[index.cpu()].tolist()
            names = tuple(names[number] for number in numbers)
        return self._replace(images=self.images[index], labels=self.labels[index], names=names)

    def relabelled(self, classes: Tensor) -> "Split":
        return self._replace(labels=classes[self.labels])

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

    def relabelled(self, names: Sequence[str], classes: Sequence[int]) -> "ImageData":
        """Return the data with the class `classes[i]` for i, and with these names of all classes."""
        numbers = torch.tensor(classes)
        train, valid = (split.relabelled(numbers) for split in (self.train, self.valid))
        test = self.test and self.test.relabelled(numbers)
        return ImageData(train, valid, test, tuple(names), self.preprocessing)

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
    light = is_light_on_dark(train.images)
    how = Preprocessing(size, channels=1, mean=(0.0,), std=(1.0,), light_on_dark=light)
    if held_out is None:
        return ImageData(train.resized(size), test.resized(size), None, names, how)
    return ImageData(train.resized(size), held_out.resized(size), test.resized(size), names, how)


def unscaled(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing without normalisation: pixels stay in [0, 1]."""
    channels = preprocessing.channels
    return replace(preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)


def divide(
    splits: Mapping[str, _Examples], valid_fraction: float | None, limit: int | None, *, trains: bool = True
) -> tuple[_Examples, _Examples, _Examples | None]:
    """Return the splits to train on, to validate on, and (if any) to test on once.

    Args:
        splits: `train`, and `valid`, `test` or both if the data set has them. Validation uses `valid`, or
            else `test`, or else a tenth of `train`.
        valid_fraction: use this stratified share of `train` for validation instead.
        limit: keep a fixed stratified subset of this many training examples.
        trains: whether a network is trained on them. If not, and `train` is the only split, all its examples
            are validated on.

    Raises:
        UserError: a subset cannot be taken, or there are two splits for validation.
    """
    train, valid, test = splits["train"], splits.get("valid"), splits.get("test")
    if valid_fraction is not None and valid is not None:
        raise UserError("--valid-fraction: there is a split to validate on already")
    if len(splits) == 1 and valid_fraction is None and not trains:
        valid = train if limit is None else train.rows(_stratified_rows(train.labels, limit, "--limit"))
        return train.rows(torch.zeros(0, dtype=torch.long)), valid, None
    if valid is None and test is not None and valid_fraction is None:
        valid, test = test, None
    elif valid is None:
        count = round((valid_fraction or 0.1) * len(train.labels))
        if valid_fraction is None:  # of few images, a tenth may be fewer than the classes
            count = max(count, len(train.labels.unique()))
        train, valid = _holdout(train, count, "--valid-fraction, here")
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
    # Each class needs an example on both sides.
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
