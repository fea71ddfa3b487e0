"""Image files as examples: small images are decoded once and kept in memory, larger ones read when needed."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lib.data import folders, photographs
from lib.data.augment import CROP_AREA, CROP_ASPECT
from lib.data.batches import FileBatches, FilesInOrder
from lib.data.cache import cached
from lib.data.images import (
    LARGEST_IN_MEMORY,
    Augmentation,
    Examples,
    ImageData,
    Split,
    divide,
    unscaled,
)
from lib.data.preprocessing import Preprocessing, is_light_on_dark
from lib.runtime import distributed
from lib.runtime.errors import UserError, warn
from lib.runtime.memory import physical

USUAL_MEMORY = 8 * 2**30  # taken for the machine's where it does not tell (Windows)


@dataclass(frozen=True)
class FileSplit:
    """Image files and their labels, read by worker processes; implements `images.Examples`.

    Attributes:
        files: paths of the files.
        labels: (N,), int64, on the CPU.
        preprocessing: preprocessing of the images.
        workers: number of worker processes.
        device: device of the batches.
    """

    files: tuple[str, ...]
    labels: Tensor
    preprocessing: Preprocessing
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the files, as `images.Examples` names its examples."""
        return self.files

    def rows(self, index: Tensor) -> "FileSplit":
        numbers = torch.arange(len(self.files))[index.cpu()]
        files = tuple(self.files[number] for number in numbers.tolist())
        return replace(self, files=files, labels=self.labels[numbers])

    def relabelled(self, classes: Tensor) -> "FileSplit":
        return replace(self, labels=classes[self.labels])

    def prepared(self, preprocessing: Preprocessing, device: torch.device) -> "FileSplit":
        return replace(self, preprocessing=preprocessing, device=device)

    def in_order(self, *, distributed_over_ranks: bool = True) -> FilesInOrder:
        return FilesInOrder(
            _Reader(self),
            len(self.files),
            finish=self._scaled,
            workers=self.workers,
            device=self.device,
            distributed_over_ranks=distributed_over_ranks,
        )

    def shuffled(
        self, augment: Sequence[str], augmentation: Augmentation, *, batch_size: int, seed: int
    ) -> FileBatches:
        # `crop` takes a window of the whole photograph before it is resized, so the reader does it; the other
        # augmentations are applied to the batch, on its device.
        transform = augmentation([name for name in augment if name != "crop"])

        def finish(images: Tensor) -> Tensor:
            images = self._scaled(images)
            return transform(images) if transform else images

        return FileBatches(
            _Reader(self, crops="crop" in augment),
            len(self.files),
            batch_size=batch_size,
            seed=seed,
            finish=finish,
            workers=self.workers,
            device=self.device,
        )

    def _scaled(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device, non_blocking=True).float() / 255
        mean, std = (
            pixels.new_tensor(values).view(-1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels - mean) / std


class _Reader:
    """Reads an image for a batch, in a worker process; see `lib.data.batches.ImageReader`."""

    def __init__(self, split: FileSplit, crops: bool = False):
        self.files, self.labels = split.files, split.labels.tolist()
        self.preprocessing, self.crops = split.preprocessing, crops

    def __getitem__(self, item: tuple[int, int | None]) -> tuple[Tensor, int]:
        number, seed = item
        if self.crops and seed is not None:
            return self._window(number, seed), self.labels[number]
        return _decode(self.files[number], self.preprocessing), self.labels[number]

    def _window(self, number: int, seed: int) -> Tensor:
        from torchvision.transforms import v2

        size = [self.preprocessing.size] * 2
        window = v2.RandomResizedCrop(size, scale=CROP_AREA, ratio=CROP_ASPECT, antialias=True)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return v2.functional.pil_to_tensor(window(photographs.read(self.files[number])))


def _decode(path: str, preprocessing: Preprocessing) -> Tensor:
    """Read an image file as the crop that the network sees, (C, H, W), uint8."""
    return (preprocessing.read(path) * 255).round().to(torch.uint8)


def load(
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    only: Sequence[str] = (),
    valid_fraction: float | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    trains: bool = True,
) -> ImageData:
    """Load a folder of images, laid out as `lib.data.folders.find` says.

    Images of up to 64 px that fit in memory are decoded once, and stored in the user's cache folder. Larger
    images are all read once as a check, and the list of unreadable ones is stored there.

    Args:
        folder: path of the folder.
        preprocessing: scaling and cropping; its mean and standard deviation are left to `ImageData.prepared`.
        only: names of the classes to use; all by default.
        valid_fraction, limit, trains: see `lib.data.images.divide`.
        skip_bad: leave out images that cannot be read.
        workers: number of processes that read larger images.

    Raises:
        UserError: as `find` and `divide` do, or images cannot be read.
    """
    found = folders.find(folder, only)
    splits, how = read_found(found, folder, preprocessing, skip_bad=skip_bad, workers=workers)
    train, valid, test = divide(splits, valid_fraction, limit, trains=trains)
    return ImageData(as_pixels(train), as_pixels(valid), test and as_pixels(test), found.classes, how)


def read_found(
    found: folders.Folder,
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    skip_bad: bool = False,
    workers: int = 0,
) -> tuple[dict[str, Examples], Preprocessing]:
    """Read the files of each split of a folder; see `load`. Images in memory are bytes, see `as_pixels`."""
    how = unscaled(preprocessing)
    files = [path for split in found.splits.values() for path in split.paths]
    read = _decoded if _fits(len(files), how) else _tried
    with distributed.main_first():
        examples, bad = read(Path(folder), files, found, how, workers)
    _complain(bad, files, skip_bad)
    splits, first = {}, 0
    for name, split in found.splits.items():
        rows = torch.tensor([row for row in range(first, first + len(split.paths)) if row not in bad])
        first += len(split.paths)
        # Selecting all rows would copy many megabytes for nothing.
        splits[name] = examples if len(rows) == len(files) else examples.rows(rows.long())
    _check_left(splits, found.classes, folder)
    if how.channels == 1 and isinstance(examples, Split):
        how = replace(how, light_on_dark=is_light_on_dark(examples.images.float() / 255))
    return splits, how


def as_pixels(split: Examples) -> Examples:
    """Return the examples with their pixels, if they are in memory, as numbers in [0, 1]."""
    # Converted only after the division into splits, because bytes are copied four times as fast as floats.
    if isinstance(split, Split):
        return split._replace(images=split.images.float().div_(255))
    return split


def _fits(images: int, how: Preprocessing) -> bool:
    memory = physical() or USUAL_MEMORY
    # Two copies in float32: pixels, and normalised pixels.
    needed = 2 * images * how.channels * how.size**2 * 4
    return how.size <= LARGEST_IN_MEMORY and needed < memory / 2


def _labels(found: folders.Folder) -> Tensor:
    return torch.tensor([label for split in found.splits.values() for label in split.labels])


def _decoded(
    folder: Path, files: list[str], found: folders.Folder, how: Preprocessing, _workers: int
) -> tuple[Examples, set[int]]:
    """Return all images as bytes in memory, and the numbers of the unreadable ones, which are black."""

    def decode() -> dict:
        pixels = torch.zeros(len(files), how.channels, how.size, how.size, dtype=torch.uint8)
        bad = []
        for number, image in enumerate(_in_threads(lambda path: _decode(path, how), files, "decoding")):
            if image is None:
                bad.append(number)
            else:
                pixels[number] = image
        return {"pixels": pixels, "bad": bad}

    def is_sound(kept: dict) -> bool:
        pixels, shape = kept["pixels"], (len(files), how.channels, how.size, how.size)
        return pixels.dtype is torch.uint8 and tuple(pixels.shape) == shape and _are_rows(kept, files)

    kept = cached(f"pixels of {how}", folder, files, decode, is_sound)
    return Split(kept["pixels"], _labels(found), names=tuple(files)), set(kept["bad"])


def _are_rows(kept: dict, files: Sequence[str]) -> bool:
    """Return whether the unreadable images that a kept result names are numbers of `files`."""
    return all(isinstance(row, int) and 0 <= row < len(files) for row in kept["bad"])


def _tried(
    folder: Path, files: list[str], found: folders.Folder, how: Preprocessing, workers: int
) -> tuple[Examples, set[int]]:
    """Return the images as files, and the numbers of the unreadable ones."""

    def attempt() -> dict:
        # Each file is decoded and cropped, not just opened; otherwise it could still fail later, in a worker.
        outcomes = _in_threads(lambda path: how.read(path).shape, files, "trying")
        return {"bad": [number for number, outcome in enumerate(outcomes) if outcome is None]}

    kept = cached(f"readable as {how}", folder, files, attempt, lambda kept: _are_rows(kept, files))
    return FileSplit(tuple(files), _labels(found), how, workers), set(kept["bad"])


def _in_threads(function: Callable, files: Sequence[str], what: str) -> Iterator:
    """Yield `function(file)` for each file in order, or None if it raises a UserError."""

    def attempt(file: str):
        try:
            return function(file)
        except UserError:
            return None

    # Decoding and scaling release Python's global lock, so threads use all cores.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from tqdm(pool.map(attempt, files), what, len(files), unit=" images", leave=False, disable=None)
    finally:
        pool.shutdown(cancel_futures=True)


def _complain(bad: set[int], files: Sequence[str], skip_bad: bool) -> None:
    if not bad:
        return
    paths = [files[number] for number in sorted(bad)]
    if not skip_bad:
        raise UserError(
            f"{len(bad):,} of {len(files):,} images cannot be read ({_cause(paths[0])}): "
            "put them right, or leave them out with --skip-bad"
        )
    warn(f"{len(bad):,} of {len(files):,} images cannot be read and are left out: {folders.first_few(paths)}")


def _cause(path: str) -> str:
    try:
        photographs.read(path)
    except UserError as error:
        return str(error)
    return f"{path} is too long for its width"


def _check_left(splits: dict[str, Examples], classes: Sequence[str], folder: str | Path) -> None:
    left = set(splits["train"].labels.tolist())
    gone = [name for label, name in enumerate(classes) if label not in left]
    if gone:
        raise UserError(f"no image of the class {folders.first_few(gone)} in {folder} can be read")
    for name, split in splits.items():
        if not len(split.labels):
            raise UserError(f"no image of the {name} split of {folder} can be read")
