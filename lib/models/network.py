"""Networks to explain, with their class names and preprocessing, and the images that they are shown."""

import difflib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib import models
from lib.data import datasets, folders, images, photographs
from lib.data.datasets import FOLDER
from lib.data.preprocessing import Preprocessing
from lib.models import pretrained
from lib.runtime import checkpoint
from lib.runtime.errors import UserError

TASK = "image-classification"


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


@dataclass(frozen=True, eq=False)
class Network:
    """A network to explain: frozen, in eval mode, on its device.

    Attributes:
        name: name in titles and file names, e.g. `resnet18`.
        module: normalised images (B, C, size, size) to logits (B, classes).
        classes: names of the classes.
        preprocessing: preprocessing that turns an image into an input.
        epoch: number of the epoch after which it was saved, counted from 0; None if unknown.
    """

    name: str
    module: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int | None = None

    @property
    def size(self) -> int:
        """Side length of the images in pixels."""
        return self.preprocessing.size

    @property
    def channels(self) -> int:
        """Number of channels of the images: 1 or 3."""
        return self.preprocessing.channels

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.module.parameters()).device

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels (…, C, H, W) in [0, 1] normalised for the network: (pixels − mean) / std."""
        mean, std = (
            pixels.new_tensor(values).view(-1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels - mean) / std

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, classes) for pixels (B, C, H, W) in [0, 1]; differentiable in the pixels."""
        return self.module(self.normalise(pixels.to(self.device)))

    def read(
        self, inputs: Sequence[str], data_dir: str | Path = "data", *, invert: bool = False
    ) -> list[ImageInput]:
        """Read the images that `inputs` name.

        Args:
            inputs: image files of any kind, or examples of a data set's validation split: `digits:7` is the
                eighth, `folder:DIR:7` the eighth of a folder of images.
            data_dir: folder of the data sets; see `lib.data.images.load`.
            invert: invert image files, because they are negatives of the network's training images.

        Raises:
            UserError: no such file, data set or example; a file that cannot be read as an image.
        """
        known: dict[str, datasets.Labelled] = {}
        return [self._read(name, known, Path(data_dir), invert) for name in inputs]

    def _read(
        self, name: str, known: dict[str, datasets.Labelled], data_dir: Path, invert: bool
    ) -> ImageInput:
        if is_file(name):
            pixels = self.preprocessing.read(name)
            return ImageInput(Path(name).stem, 1 - pixels if invert else pixels)
        dataset, _, index = name.rpartition(":")
        if _folder_of(dataset):
            return self._of_folder(_folder_of(dataset), int(index), invert)
        if dataset not in known:
            entry = datasets.find(dataset)
            known[dataset] = entry.read(data_dir, entry.options({}))
        return self._example(known[dataset], dataset, int(index))

    def _of_folder(self, folder: str, index: int, invert: bool) -> ImageInput:
        found = folders.find(folder)
        files = found.splits[_unseen(found.splits)]
        _check_index(f"{FOLDER}:{folder}", index, len(files.paths))
        pixels = self.preprocessing.read(files.paths[index])
        name = f"{Path(folder).resolve().name}-{index}"
        return ImageInput(name, 1 - pixels if invert else pixels, found.classes[files.labels[index]])

    def _example(self, data: datasets.Labelled, dataset: str, index: int) -> ImageInput:
        split = data.splits[_unseen(data.splits)]
        _check_index(dataset, index, len(split.labels))
        image, label = split.images[index], int(split.labels[index])
        pixels = images.resize(image[None], self.size)[0]
        if len(pixels) != self.channels:
            pixels = pixels.mean(0, keepdim=True).expand(self.channels, -1, -1).contiguous()
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


def check_inputs(inputs: Sequence[str]) -> None:
    """Check, before a network is downloaded or loaded, that all inputs can be read.

    Raises:
        UserError: one cannot; the message names the first.
    """
    for name in inputs:
        if is_file(name):
            photographs.read(name)
        else:
            dataset = name.rpartition(":")[0]
            if _folder_of(dataset):
                folders.find(_folder_of(dataset))
            else:
                datasets.find(dataset)


def is_file(name: str) -> bool:
    _, colon, index = name.rpartition(":")
    return not (colon and index.isdecimal()) or os.path.exists(name)


def load_pretrained(
    ptm: str, weights: str | None = None, device: torch.device | str = "cpu", *, seed: int = 42
) -> Network:
    """Load a classifier of torchvision; arguments and errors as for `lib.models.pretrained.load`."""
    found = pretrained.load(ptm, weights, seed=seed)
    return Network(ptm, _to_look_at(found.model, device), found.classes, found.preprocessing)


def load_checkpoint(file: str | Path, device: torch.device | str = "cpu") -> Network:
    """Load the image classifier in a checkpoint of this project.

    Raises:
        UserError: the file is missing, damaged, of another task, or has no network or class names.
    """
    saved = checkpoint.load(file, task=TASK)
    if "model" not in saved:
        raise UserError(f"{file} is a bare state_dict: --ptm NAME --weights FILE says whose")
    network, classes = saved["model"], saved.get("classes")
    if not isinstance(classes, list | tuple) or not classes:
        raise UserError(f"{file} does not name its classes")
    # Any: a file may hold anything, and `of` refuses whatever is no preprocessing.
    how: Any = saved.get("preprocessing")
    preprocessing = Preprocessing.of(how, file)
    model = models.build(network["name"], **network["config"])
    checkpoint.restore_weights(model, saved["state_dict"], file)
    epoch = saved.get("epoch")
    return Network(
        network["name"],
        _to_look_at(model, device),
        tuple(map(str, classes)),
        preprocessing,
        epoch if isinstance(epoch, int) else None,
    )


def _to_look_at(model: nn.Module, device: torch.device | str) -> nn.Module:
    return model.eval().requires_grad_(False).to(device)


def find_classes(subject: Network, targets: Sequence[str]) -> list[int]:
    """Return the indices of the classes in `targets`, which are names (case is ignored) or numbers.

    Raises:
        UserError: no class has that name (the message lists the nearest), or the number is too large.
    """
    return [_find_class(subject.classes, str(target)) for target in targets]


def _find_class(classes: Sequence[str], target: str) -> int:
    folded = [name.casefold() for name in classes]
    if target.casefold() in folded:
        return folded.index(target.casefold())
    if not target.isdecimal():
        nearest = ", ".join(_nearest(classes, target))
        raise UserError(f"there is no class {target!r}; the nearest names are {nearest}")
    if int(target) >= len(classes):
        raise UserError(f"there is no class {target}: the network's are 0 to {len(classes) - 1}")
    return int(target)


def _nearest(classes: Sequence[str], target: str, most: int = 5) -> list[str]:
    wanted = target.casefold()

    def likeness(name: str) -> tuple[bool, float]:
        # A matching whole word ranks above similar letters: 'cat' means 'tiger cat', not 'bat'.
        return wanted in name.casefold().split(), difflib.SequenceMatcher(a=wanted, b=name.casefold()).ratio()

    return sorted(classes, key=likeness, reverse=True)[:most]


def check_top(subject: Network, k: int) -> None:
    """Raise a UserError if the network has fewer than `k` classes."""
    if k > len(subject.classes):
        raise UserError(f"-k {k} is more than the {len(subject.classes)} classes of {subject.name}")
