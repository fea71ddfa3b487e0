"""Networks that begin with what another task taught them: weights of a trunk, and a new head on top.

The head is the last layer with weights; the trunk is all the rest. What the head takes is called features.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.models import layers, pretrained
from lib.runtime import checkpoint
from lib.runtime.errors import UserError


def build(name: str, classes: int, channels: int = 3, size: int | None = None) -> nn.Module:
    """Return torchvision's network `name` as it is before any training, its layers under their own names.

    Raises:
        UserError: there is no such network, or not for such images.
    """
    if channels != 3:
        raise UserError(f"{name} takes images of 3 channels, not of {channels}")
    model = pretrained.build(name, classes=classes, image_size=size)
    # What there is to look at: its parts at the largest scale, the features, and the logits.
    model.stages = tuple(_parts(model))
    return model


def _parts(model: nn.Module) -> Iterable[str]:
    """The children of the largest scale that a network has at least three of."""
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
    """Return the name of the head of a classifier, and the head."""
    owners = ((name, each) for name, each in model.named_modules() if list(each.parameters(recurse=False)))
    return list(owners)[-1]


def load_trunk(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights of the same network, for whatever classes, into all of `model` but its head.

    Raises:
        UserError: they are another network's; `source` names them.
    """
    head, _ = head_of(model)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(f"{head}.")}
    trunk = {name: value for name, value in weights.items() if not name.startswith(f"{head}.")}
    checkpoint.restore_weights(model, trunk | own, source)


def freeze(model: nn.Module) -> None:
    """Leave nothing of `model` to be trained but its head; the trunk stays in eval mode for good.

    Its batch normalisation then keeps its statistics, and it drops nothing out, so that an image always has
    the same features: those may also be given to the network instead of images, see `features`.
    """
    model.head_name, head = head_of(model)
    model.requires_grad_(False)
    head.requires_grad_(True)
    # A mode is set by `train`, which is the class's: only so do copies of the network have it too.
    kind = type(model)
    model.__class__ = type(kind.__name__, (_Frozen, kind), {})
    model.train(model.training)


class _Frozen(nn.Module):
    head_name: str

    def train(self, mode: bool = True) -> "_Frozen":
        super().train(False)
        self.get_submodule(self.head_name).train(mode)
        self.training = mode  # what the objective tells training from validation by
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), or their features (B, D), to logits (B, classes)."""
        return self.get_submodule(self.head_name)(x) if x.dim() == 2 else super().forward(x)


def has_features(model: nn.Module) -> bool:
    """Return whether the head's answer is the network's, so that features can stand for images."""
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
