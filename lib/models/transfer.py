"""Transfer learning: a trunk with pretrained weights, and a new head.

The head is the last layer with weights; the trunk is all the rest. The head's input is called features.
"""

from collections.abc import Iterable
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from lib.models import layers, pretrained
from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.runtime.weights import named_as


def build(name: str, classes: int, channels: int = 3, size: int | None = None) -> nn.Module:
    """Return torchvision's untrained network `name`; its layers keep torchvision's names.

    Raises:
        UserError: there is no such network, or it cannot be built for such images.
    """
    if channels != 3:
        raise UserError(f"{name} takes images of 3 channels, not of {channels}")
    model = pretrained.build(name, classes=classes, image_size=size)
    # The layers that are shown by default, an attribute that this project's own networks declare.
    cast(Any, model).stages = tuple(_parts(model))
    return model


def _parts(model: nn.Module) -> Iterable[str]:
    """Return the names of a network's largest parts: the last five at the first depth with at least three."""
    scale = dict(model.named_children())
    while True:
        wider = {
            f"{name}.{child}": each
            for name, module in scale.items()
            for child, each in module.named_children()
        }
        if len(scale) >= 3 or not wider:
            return list(scale)[-5:]
        scale = wider


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the name and the module of a classifier's head."""
    owners = ((name, each) for name, each in model.named_modules() if list(each.parameters(recurse=False)))
    return list(owners)[-1]


def load_trunk(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load the weights of the same network, with any number of classes, into `model` except its head.

    Raises:
        UserError: the weights are those of another network; the message names `source`.
    """
    head, _ = head_of(model)
    own = model.state_dict()
    named = named_as(own, weights, source)
    trunk = {name: value for name, value in named.items() if not name.startswith(f"{head}.")}
    kept = {name: value for name, value in own.items() if name.startswith(f"{head}.")}
    checkpoint.restore_weights(model, trunk | kept, source)


def freeze(model: nn.Module) -> None:
    """Freeze all of `model` but its head; the trunk stays in eval mode from now on.

    Batch normalisation then keeps its statistics and dropout is off, so an image always has the same
    features. The network therefore also accepts features instead of images, see `features`.
    """
    name, head = head_of(model)
    model.requires_grad_(False)
    head.requires_grad_(True)
    frozen = cast(Any, model)
    frozen.head_name = name
    # Two methods of this one network are replaced, because its class is torchvision's. They are bound methods
    # and not closures over `model`, so that a deep copy (an average of the weights) gets its own, bound to
    # itself. A module around the network would put a prefix before the names of all weights in checkpoints.
    frozen.train = MethodType(_train_head_alone, model)
    frozen.forward = MethodType(_forward_also_from_features, model)
    model.train(model.training)


def _train_head_alone(model: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode of the head; the trunk stays in eval mode. A frozen network's `train`."""
    type(model).train(model, False)
    _head_of_frozen(model).train(mode)
    model.training = mode  # the objective reads it to tell training from validation
    return model


def _forward_also_from_features(model: nn.Module, x: Tensor) -> Tensor:
    """Images (B, C, H, W), or their features (B, D), to logits (B, classes). A frozen network's `forward`."""
    return _head_of_frozen(model)(x) if x.dim() == 2 else type(model).forward(model, x)


def _head_of_frozen(model: nn.Module) -> nn.Module:
    # By its name, because `head_of` looks at every module, and this runs in every update.
    return model.get_submodule(cast(Any, model).head_name)


def has_features(model: nn.Module) -> bool:
    """Return whether the head is a linear layer; its input, the features, can then replace the images."""
    return isinstance(head_of(model)[1], nn.Linear)


def features(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the features (N, D) of batches of (images, labels), float32, and the labels (N,)."""
    parts, labels = [], []
    head = head_of(model)[1]

    def keep(_head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        parts.append(inputs[0].float())

    handle = head.register_forward_pre_hook(keep)
    try:
        with layers.evaluating(model), torch.no_grad():
            for images, batch_labels in batches:
                model(images)
                labels.append(batch_labels)
    finally:
        handle.remove()
    return torch.cat(parts), torch.cat(labels)
