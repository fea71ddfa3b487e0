"""Images with masks: splits in memory or in files, their batches, and the weights of their classes.

A mask has the label of each pixel, or the label to ignore where it has no class.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lib.data.batches import Shuffled
from lib.data.joint_augment import JointAugmentation
from lib.data.preprocessing import Preprocessing
from lib.runtime import distributed
from lib.runtime.errors import UserError

SPLIT_SEED = 0  # not --seed, so that seeds are compared on the same examples
NAMED = 40  # of the classes of a folder that does not name them, more are hardly meant

Pair = tuple[Tensor, Tensor]  # an image (3, H, W), uint8, and its mask (H, W), uint8


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Attributes:
        size: longest side of the images in pixels; None to leave them as they are.
        ignore: label of the pixels without a class.
        classes: names of the classes; empty where the data set tells them.
        valid_fraction: share of the training images to validate on, if there is no split for it.
    """

    size: int | None
    ignore: int
    classes: tuple[str, ...] = ()
    valid_fraction: float | None = None


class Pairs(Protocol):
    """Images and their masks, in memory or read from files one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Pair: ...


@dataclass(frozen=True)
class MaskedSplit:
    """A split of a data set.

    Attributes:
        pairs: the images and masks.
        names: name of each image.
        rows: numbers of the examples of this split among the pairs.
        preprocessing: of the images; only mean and standard deviation are used.
        device: of the batches.
    """

    pairs: Pairs
    names: tuple[str, ...]
    rows: tuple[int, ...]
    preprocessing: Preprocessing | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Pair:
        return self.pairs[self.rows[number]]

    def name(self, number: int) -> str:
        """Return the name of an image."""
        return self.names[self.rows[number]]

    def part(self, rows: Sequence[int]) -> "MaskedSplit":
        """Return the split of some of its examples."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images (…, 3, H, W) in [0, 1] as network inputs, on the device, with channels last."""
        assert self.preprocessing
        images = images.to(self.device)
        mean, std = (
            images.new_tensor(values).view(-1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    @cached_property
    def usual_size(self) -> tuple[int, int]:
        """Median height and width of the images."""
        sizes = torch.tensor([self[number][1].shape for number in range(len(self))])
        height, width = sizes.median(0).values.tolist()
        return height, width

    def frequencies(self, classes: int, ignore: int) -> Tensor:
        """Return for each class (2, classes), float64: its pixels, and all pixels of images that have it."""
        counted = torch.zeros(2, classes, dtype=torch.float64)
        for number in range(len(self)):
            mask = self[number][1].flatten()
            counts = mask[mask != ignore].long().bincount(minlength=classes)
            counted[0] += counts
            counted[1] += (counts > 0) * counts.sum()
        return counted


class MasksInOrder:
    """One pass over images and masks in order, one at a time; the ranks share them.

    One at a time, so that an image has the same logits, bit for bit, however many ranks share the images.

    Args:
        split: the examples.
        distributed_over_ranks: give each rank its share; otherwise every rank gets all.
    """

    def __init__(self, split: MaskedSplit, *, distributed_over_ranks: bool = True) -> None:
        self.split, self.over_ranks = split, distributed_over_ranks

    def __iter__(self) -> Iterator[Pair]:
        first = distributed.rank() if self.over_ranks else 0
        step = distributed.world_size() if self.over_ranks else 1
        for number in range(first, len(self.split), step):
            image, mask = self.split[number]
            yield self.split.normalised(image[None].float() / 255), mask[None].long().to(self.split.device)


class MaskBatches(Shuffled):
    """Shuffled and augmented batches of images (B, 3, h, w) and masks (B, h, w) for training.

    Images that are read from files are read in threads.

    Args:
        split: the examples.
        augmentation: makes batches of windows.
        batch_size, seed: see `Shuffled`.
    """

    def __init__(
        self, split: MaskedSplit, augmentation: JointAugmentation, *, batch_size: int, seed: int
    ) -> None:
        super().__init__(len(split), batch_size, seed)
        self.split, self.augmentation = split, augmentation

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from number `start` on."""
        read: Callable[[int], Pair] = self.split.__getitem__
        with ThreadPoolExecutor(2) as pool:
            in_memory = isinstance(self.split.pairs, list)
            for rows in self.rows(self.order(epoch), start):
                pairs = list(map(read, rows.tolist()) if in_memory else pool.map(read, rows.tolist()))
                images, masks = self.augmentation(pairs)
                yield self.split.normalised(images), masks.to(self.split.device)


@dataclass(frozen=True)
class Labelled:
    """The splits `train`, and maybe `valid` and `test`, and the names of the classes."""

    splits: dict[str, MaskedSplit]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class MaskedData:
    """The data of a run: splits to train on, to validate on, and (if any) to test on once."""

    train: MaskedSplit
    valid: MaskedSplit
    test: MaskedSplit | None
    classes: tuple[str, ...]
    ignore: int
    preprocessing: Preprocessing

    @property
    def splits(self) -> dict[str, MaskedSplit]:
        """The splits by name."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in named.items() if split}


def divide(
    splits: dict[str, MaskedSplit], valid_fraction: float | None, limit: int | None
) -> tuple[MaskedSplit, MaskedSplit, MaskedSplit | None]:
    """Return the splits to train on, to validate on and to test on.

    Args:
        splits: `train`, and `valid`, `test` or both if the data set has them. Validation uses `valid`, or
            else `test`, or else a part of `train`.
        valid_fraction: validate on this share of `train`, a tenth by default.
        limit: keep a fixed random subset of this many training examples.

    Raises:
        UserError: too few images, or two splits for validation.
    """
    train, valid, test = splits["train"], splits.get("valid"), splits.get("test")
    if valid_fraction is not None and valid is not None:
        raise UserError("--valid-fraction: there is a split to validate on already")
    if valid is None and test is not None and valid_fraction is None:
        valid, test = test, None
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    if valid is None:
        count = max(1, round((valid_fraction or 0.1) * len(train)))
        if count >= len(train):
            raise UserError(f"{len(train)} images are too few to train and to validate on")
        train, valid = train.part(sorted(order[count:])), train.part(sorted(order[:count]))
    if limit is not None:
        if limit > len(train):
            raise UserError(f"--limit {limit} is more than the {len(train)} training images")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        train = train.part(sorted(order[:limit]))
    return train, valid, test


def class_weights(kind: str, frequencies: Tensor) -> Tensor | None:
    """Return the weight of each class in the loss (classes,), with mean 1 over the pixels; None for `none`.

    Args:
        kind: `none`; `median-frequency`, median(f) / f with f the share of a class in the pixels of the
            images that have it (Eigen & Fergus 2015, arXiv:1411.4734); or `log`, 1 / log(1.1 + p) with p its
            share in all pixels (Paszke et al. 2016, arXiv:1606.02147, who write 1.02). A class without
            pixels gets the largest weight of the others.
        frequencies: from `MaskedSplit.frequencies`.
    """
    if kind == "none":
        return None
    pixels, of_images = frequencies
    share = pixels / pixels.sum()
    there = pixels > 0
    if kind == "median-frequency":
        frequency = pixels / of_images.clamp(min=1)
        weights = frequency[there].median() / frequency.clamp(min=1e-12)
    else:
        weights = 1 / (1.1 + share).log()
    weights = weights.where(there, weights[there].max())
    return (weights / (weights * share).sum()).float()


def named_classes(given: Sequence[str], largest: int) -> tuple[str, ...]:
    """Return the names of a folder's classes, or their numbers if none are given.

    Raises:
        UserError: the largest label is above the classes.
    """
    if given:
        if largest >= len(given):
            raise UserError(f"a mask has the label {largest}; the classes are 0 to {len(given) - 1}")
        return tuple(given)
    if largest >= NAMED:
        raise UserError(
            f"a mask has the label {largest}: name the classes with --classes, or say with --ignore-index "
            "which label means none"
        )
    return tuple(itertools.islice(map(str, itertools.count()), max(2, largest + 1)))
