"""Torchvision's image classifiers by name, with published weights, weights from a file, or random weights."""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.data.preprocessing import Preprocessing
from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.runtime.weights import named_as

if TYPE_CHECKING:
    from torchvision.models import Weights

RANDOM = "random"
PUBLISHED_CLASSES = 1000  # of ImageNet

# Published DenseNet files have parameter names with dots that PyTorch no longer allows in module names.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=\d\.)")
# Auxiliary classifiers of GoogLeNet and Inception v3, used only in their training.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


class Pretrained(NamedTuple):
    """A classifier on the CPU, the names of its classes, and the preprocessing of its inputs."""

    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing


def names() -> list[str]:
    """Return the names of all classifiers of torchvision."""
    from torchvision import models

    return models.list_models(module=models)


def check_name(name: str, also: Iterable[str] = ()) -> None:
    """Raise a UserError if there is no classifier `name`; it suggests the nearest names, also of `also`."""
    if name not in names():
        nearest = difflib.get_close_matches(name.lower(), [*also, *names()], n=5, cutoff=0)
        raise UserError(f"there is no network {name!r}; the nearest names are {', '.join(nearest)}")


def build(name: str, *, classes: int = 1000, image_size: int | None = None) -> nn.Module:
    """Return the untrained network `name`.

    Args:
        name: torchvision's name of the network, e.g. `resnet18`.
        classes: number of classes.
        image_size: side length of the images; only vision transformers need it, which accept no other size.

    Raises:
        UserError: there is no such network, or it cannot be built for images of that size.
    """
    check_name(name)
    from torchvision import models

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect a different input scaling; transform_input converts to it.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    elif name.startswith("vit_") and image_size:
        options = {"image_size": image_size}
    try:
        return models.get_model(name, weights=None, num_classes=classes, **options)
    except AssertionError as error:  # the size is not a multiple of the patch size
        raise UserError(f"{name} does not take images of {image_size} px: {error}") from None


def load(name: str, weights: str | None = None, *, seed: int = 42) -> Pretrained:
    """Return the network `name` with weights, in training mode like any new module.

    Class names and preprocessing are those of the published weights. A file is matched to published weights
    by its name, or else treated like torchvision's default weights. If the number of classes differs from
    the published one, the classes are named by their numbers.

    Args:
        name: torchvision's name of the network, e.g. `resnet18`.
        weights: torchvision's name of the weights, e.g. `IMAGENET1K_V1` (downloaded on first use); a file
            with a state_dict, see `lib.runtime.weights`; `random`; or None for torchvision's default weights.
        seed: seed of random weights.

    Raises:
        UserError: the network, weights or file does not exist, does not fit, or cannot be downloaded.
    """
    check_name(name)
    if weights == RANDOM:
        published = _published(name).DEFAULT
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(name, image_size=_image_size(published))
        return _described(model, PUBLISHED_CLASSES, published)
    chosen = _choose(name, weights)
    if isinstance(chosen, Path):
        file, published = chosen, _published_as(name, chosen)
    else:
        file, published = _fetch(name, chosen), chosen
    model, classes = _build_for(name, _read(file), file, _image_size(published))
    return _described(model, classes, published)


def _build_for(
    name: str, state_dict: dict[str, Tensor], file: Path, image_size: int
) -> tuple[nn.Module, int]:
    """Return the network `name` with the weights of a file, and the number of classes that these have."""
    model = build(name, image_size=image_size)
    own = model.state_dict()
    weights = {
        _OLD_DENSENET.sub(r"\1", key): value
        for key, value in named_as(own, state_dict, file).items()
        if not key.startswith(_AUXILIARY)
    }
    classes = count_classes(list(own), weights)
    if classes != PUBLISHED_CLASSES:
        model = build(name, classes=classes, image_size=image_size)
    checkpoint.restore_weights(model, weights, file)
    return model, classes


def _published(name: str) -> type["Weights"]:
    from torchvision import models

    return models.get_model_weights(name)


def _choose(name: str, weights: str | None) -> "Weights | Path":
    """Return the published weights that `weights` names (by default torchvision's), or the path of a file.

    Raises:
        UserError: `weights` is neither.
    """
    published = _published(name)
    if weights is None:
        return published.DEFAULT
    # One set of VGG-16's weights has only features (the classifier is all NaN): it has no categories.
    known = {each.name: each for each in published if each.meta["categories"]}
    if weights in known:
        return known[weights]
    if os.path.exists(weights) or Path(weights).suffix or os.path.dirname(weights):
        return Path(weights)
    raise UserError(
        f"{name} has no weights {weights!r}: there are {', '.join(known)}, {RANDOM}, or a file's name"
    )


def _published_as(name: str, file: Path) -> "Weights":
    """Return the published weights with this file name, or else torchvision's default weights."""
    published = _published(name)
    return next((each for each in published if _file_name(each) == file.name), published.DEFAULT)


def _file_name(published: "Weights") -> str:
    return published.url.rpartition("/")[2]


def _fetch(name: str, published: "Weights") -> Path:
    """Return the file of `published` in torch's cache folder; download it on first use."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(published)
    if file.exists():
        return file
    hash_prefix = re.search(r"-([0-9a-f]{8,})\.", file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            published.url, str(file), hash_prefix and hash_prefix[1], progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError, HTTPException) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the weights of {name} could not be fetched ({cause}): put {published.url} into {file.parent}, "
            f"or name the file with --weights FILE; --weights {RANDOM} needs none"
        ) from None
    return file


def _read(file: Path) -> dict[str, Tensor]:
    saved = checkpoint.load(file)
    if "format" in saved:
        raise UserError(f"{file} is a checkpoint of this project: give it to --restore-file alone")
    return saved["state_dict"]


def count_classes(names: Sequence[str], weights: Mapping[str, Tensor]) -> int:
    """Return the number of classes of the classifier with these weights, in any order.

    Args:
        names: names of the weights in the order in which the network registers them.
        weights: the weights.
    """
    # In every classifier of torchvision, the last registered tensor has one row per class. A scalar there, or
    # nothing, is a sign of another network's file, which `restore_weights` refuses.
    last = weights.get(names[-1])
    return PUBLISHED_CLASSES if last is None or not last.dim() or not len(last) else len(last)


def _image_size(published: "Weights") -> int:
    return published.transforms().crop_size[0]


def _described(model: nn.Module, classes: int, published: "Weights") -> Pretrained:
    return Pretrained(model, class_names(classes, published.meta["categories"]), _preprocessing(published))


def class_names(classes: int, known: Sequence[str]) -> tuple[str, ...]:
    """Return the `known` class names, or numbers if there are not exactly `classes` names."""
    return tuple(known) if len(known) == classes else tuple(map(str, range(classes)))


def _preprocessing(published: "Weights") -> Preprocessing:
    preset = published.transforms()
    return Preprocessing(
        size=preset.crop_size[0],
        channels=3,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
    )
