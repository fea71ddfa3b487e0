"""Networks to explain: modules with what using them takes. From torchvision, a checkpoint, or any module."""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib import models
from lib.data.preprocessing import Preprocessing
from lib.models import outputs, pretrained, pretrained_segmentation
from lib.models.averaging import AveragedViews
from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.runtime.spelling import whole_number

TASK = "image-classification"
SEGMENTATION = "segmentation"


@dataclass(frozen=True, eq=False)
class Network:
    """A module with what using it takes. The module is put in eval mode and frozen; it stays on its device.

    Attributes:
        module: normalised images (B, C, size, size) to an output (B, …), e.g. logits (B, classes).
        classes: names of the classes; empty if they have none. One logit tells two classes apart.
        preprocessing: preprocessing that turns an image into an input.
        name: name in titles and file names, e.g. `resnet18`.
        epoch: number of the epoch after which it was saved, counted from 1; None if unknown.
        independent: whether an image may have several of the classes.
        views: number of views of an image over which it averages its answers, see `AveragedViews`; explained
            is the answer to the image itself.
        dense: whether it tells the class of each pixel: its output is (B, classes, H, W).
        code: what its function depends on beside its weights, as a hash: the user's code and its arguments.
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    epoch: int | None = None
    independent: bool = False
    views: int = 1
    dense: bool = False
    code: str = ""

    def __post_init__(self) -> None:
        self.module.eval().requires_grad_(False)

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
        """Device of the module: that of its first weight or buffer, or the CPU if it has none."""
        return self._first_weight.device

    @property
    def example(self) -> Tensor:
        """A grey image, normalised, (1, C, size, size): an input to try the module on."""
        return self.example_of((self.size, self.size))

    def example_of(self, size: tuple[int, int]) -> Tensor:
        """Return a grey image, normalised, (1, C, H, W) of `size` (H, W)."""
        weight = self._first_weight
        kind = weight.dtype if weight.is_floating_point() else torch.float32
        grey = torch.full((1, self.channels, *size), 0.5, dtype=kind, device=weight.device)
        return self.normalise(grey)

    def check_takes(self, size: tuple[int, int]) -> None:
        """Raise a UserError if the network does not take images of this height and width."""
        if size == (self.size, self.size):
            return
        try:
            with torch.no_grad():
                self.module(self.example_of(size))
        except Exception as error:  # a network may refuse in any way, also by an assertion
            text = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(
                f"{self.name} does not take an image of {size[1]}×{size[0]} pixels ({text}): use --fit pad, "
                f"which makes it {self.size}×{self.size}, or another --longest-side"
            ) from None

    @property
    def _first_weight(self) -> Tensor:
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        return next(tensors, torch.zeros(()))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels (…, C, H, W) in [0, 1] normalised for the network: (pixels − mean) / std."""
        mean, std = (
            pixels.new_tensor(values).view(-1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels - mean) / std

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the output (B, …) for pixels (B, C, H, W) in [0, 1]; differentiable in the pixels."""
        return self.module(self.normalise(pixels.to(self.device)))

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return its answers, the probability of each class (B, classes), for pixels (B, C, H, W) in [0, 1].

        They are those of `--predict-only`: averaged over `views`.
        """
        averaged = AveragedViews(self.module, self.views)
        found = averaged(self.normalise(pixels.to(self.device)))
        return outputs.probabilities(found, self.independent)

    def class_name(self, index: int) -> str:
        """Return the name of an output: its class, or its number if the classes have no names."""
        return self.classes[index] if self.classes else str(index)


def load_pretrained(
    ptm: str, weights: str | None = None, device: torch.device | str = "cpu", *, seed: int = 42
) -> Network:
    """Load a network of torchvision's; arguments and errors as for `lib.models.pretrained.load`."""
    if ptm in pretrained_segmentation.names():
        found = pretrained_segmentation.load(ptm, weights, seed=seed)
        return Network(found.model.to(device), found.classes, found.preprocessing, ptm, dense=True)
    found = pretrained.load(ptm, weights, seed=seed)
    # One logit tells two classes apart; see `lib.models.outputs`.
    classes = found.classes if len(found.classes) > 1 else ("0", "1")
    return Network(found.model.to(device), classes, found.preprocessing, ptm)


def load_checkpoint(file: str | Path, device: torch.device | str = "cpu") -> Network:
    """Load the network in a checkpoint of this project that tells classes of images or of pixels.

    Raises:
        UserError: the file is missing, damaged, of another task, or has no network or class names.
    """
    saved = checkpoint.load(file, task=(TASK, SEGMENTATION))
    dense = saved.get("task") == SEGMENTATION
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
    epoch = saved.get("epochs")
    return Network(
        model.to(device),
        tuple(map(str, classes)),
        preprocessing,
        network["name"],
        epoch if isinstance(epoch, int) else None,
        views=1 if dense else _views(saved),
        dense=dense,
    )


def _views(saved: dict[str, Any]) -> int:
    """Return the number of views over which the predictions of a checkpoint's network are averaged."""
    views = saved.get("flags", {}).get("test_views", 1)
    return views if views in (1, 2, 6) else 1


def find_classes(network: Network, targets: Sequence[str]) -> list[int]:
    """Return the indices of the classes in `targets`, names (case is ignored) or numbers, each once.

    Raises:
        UserError: no class has that name (the message lists the nearest), or the number is too large.
    """
    return list(dict.fromkeys(_find_class(network.classes, str(target)) for target in targets))


def _find_class(classes: Sequence[str], target: str) -> int:
    folded = [name.casefold() for name in classes]
    if target.casefold() in folded:
        return folded.index(target.casefold())
    number = whole_number(target)
    if number is None and not classes:
        raise UserError(f"the network's outputs have no names: --target {target!r} must be a number")
    if number is None:
        nearest = ", ".join(_nearest(classes, target))
        raise UserError(f"there is no class {target!r}; the nearest names are {nearest}")
    if classes and number >= len(classes):
        raise UserError(f"there is no class {target[:20]}: the network's are 0 to {len(classes) - 1}")
    return number


def _nearest(classes: Sequence[str], target: str, most: int = 5) -> list[str]:
    wanted = target.casefold()

    def likeness(name: str) -> tuple[bool, float]:
        # A matching whole word ranks above similar letters: 'cat' means 'tiger cat', not 'bat'.
        return wanted in name.casefold().split(), difflib.SequenceMatcher(a=wanted, b=name.casefold()).ratio()

    return sorted(classes, key=likeness, reverse=True)[:most]


def check_top(network: Network, k: int) -> None:
    """Raise a UserError if the network has fewer than `k` classes."""
    if network.classes and k > len(network.classes):
        raise UserError(f"-k {k} is more than the {len(network.classes)} classes of {network.name}")
