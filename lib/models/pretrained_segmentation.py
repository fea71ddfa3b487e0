"""Torchvision's segmentation networks by name, with published, random, or a file's weights."""

import difflib
import os
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.data.preprocessing import Preprocessing
from lib.models import pretrained
from lib.runtime import checkpoint
from lib.runtime.errors import UserError

PUBLISHED_CLASSES = 21  # of Pascal VOC


def names() -> list[str]:
    """Return the names of torchvision's segmentation networks."""
    from torchvision import models

    return models.list_models(module=models.segmentation)


class Logits(nn.Module):
    """A segmentation network of torchvision's that returns its logits alone, and not a dict of them.

    Its layers keep their names. (B, 3, H, W) to (B, classes, H, W).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self._networks = [network]  # in a list, or else all its layers would have a second name

    def forward(self, images: Tensor) -> Tensor:
        return self._networks[0](images)["out"]


def load(name: str, weights: str | None = None, *, seed: int = 42) -> pretrained.Pretrained:
    """Return the segmentation network `name` with weights; arguments as for `lib.models.pretrained.load`.

    Raises:
        UserError: the network, weights or file does not exist, does not fit, or cannot be downloaded.
    """
    from torchvision import models

    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=3, cutoff=0)
        raise UserError(f"there is no segmentation network {name!r}; the nearest are {', '.join(nearest)}")
    published = models.get_model_weights(name).DEFAULT
    classes, state = PUBLISHED_CLASSES, {}
    if weights != pretrained.RANDOM:
        file = _file(name, weights, published)
        state = _without_auxiliary(checkpoint.load(file)["state_dict"])
        classes = _count_classes(state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options: dict[str, Any] = {} if name.startswith("lraspp") else {"aux_loss": False}
        network = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **options)
    if state:
        checkpoint.restore_weights(network, state, file)
    preset = published.transforms()
    how = Preprocessing(
        size=preset.resize_size[0], channels=3, mean=tuple(preset.mean), std=tuple(preset.std), native=True
    )
    known = pretrained.class_names(classes, published.meta["categories"])
    return pretrained.Pretrained(Logits(network), known, how)


def _file(name: str, weights: str | None, published: Any) -> Path:
    """Return the file of the weights; published ones are downloaded on first use."""
    if weights is not None and weights != published.name:
        if os.path.exists(weights) or Path(weights).suffix or os.path.dirname(weights):
            return Path(weights)
        raise UserError(f"{name} has no weights {weights!r}: there are {published.name}, random, or a file")
    file = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(file), progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"the weights of {name} could not be fetched ({cause}): put {published.url} into "
                f"{file.parent}, or name the file with --weights FILE; --weights random needs none"
            ) from None
    return file


def _without_auxiliary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("aux_classifier.")}


def _count_classes(state: Mapping[str, Tensor]) -> int:
    """Return the number of classes: the rows of the last layer, whatever its name is."""
    last = next((value for name, value in reversed(list(state.items())) if name.endswith(".bias")), None)
    return PUBLISHED_CLASSES if last is None or not last.dim() else len(last)
