"""A network's activations: which layers have spatial maps, and graphs that start at such a layer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.explain.rectifiers import RectifierRule
from lib.models.layers import evaluating, record, resolve
from lib.models.spatial_maps import spatial_map
from lib.runtime.errors import UserError


class SpatialLayer(NamedTuple):
    """A module that puts out a spatial map, `shape` (C, h, w); a transformer's tokens count as their grid."""

    name: str
    kind: str
    shape: tuple[int, int, int]


def spatial_layers(model: nn.Module, example: Tensor) -> list[SpatialLayer]:
    """Return the modules of `model` that put out a spatial map, in the order in which they finish.

    Args:
        example: images (B, C, H, W); they pass the network once, without gradients.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    with evaluating(model), record(modules) as outputs, torch.no_grad():
        model(example)
    maps = {name: spatial_map(model, output, example) for name, output in outputs.items()}
    return [
        SpatialLayer(name, type(modules[name]).__name__, tuple(each.shape[1:]))
        for name, each in maps.items()
        if each is not None
    ]


def default_layer(model: nn.Module, example: Tensor) -> str:
    """Return the name of the last module with a spatial map (h·w > 1) on which the output depends.

    An adaptive pooling (VGG's) is passed over: it makes no features, it only resizes them.

    Args:
        example: images (B, C, H, W); they pass the network three times over, in work.

    Raises:
        UserError: there is none.
    """
    pooling = {name for name, each in model.named_modules() if isinstance(each, nn.AdaptiveAvgPool2d)}
    names = [row.name for row in spatial_layers(model, example) if row.name not in pooling]
    with explaining(model), tap(model, names) as tapped:
        with RectifierRule("deconvnet"):
            output = model(example)
        # NaN reaches everything that the output depends on, whatever the weights between are, be they zero
        # as in a vision transformer's fresh head, and with this rule through closed ReLUs, too. It does not
        # reach patch tokens behind the last attention, from where the class token alone goes on: a map of
        # these would be zero.
        reached = output.requires_grad and torch.autograd.grad(
            output, list(tapped.values()), torch.full_like(output, torch.nan), allow_unused=True
        )
    for name, gradient in reversed(list(zip(tapped, reached or (), strict=False))):
        if gradient is not None and spatial_map(model, gradient, example).isnan().any():
            return name
    raise UserError(f"no layer of {type(model).__name__} has a spatial map on which its output depends")


@contextmanager
def tap(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, keep what some layers put out last, such that gradients can be taken to it.

    The first of them that a forward pass meets is where its graph starts (the network being frozen): it
    puts out a leaf. The others go on that graph. Each passes on a clone, because an in-place ReLU behind it
    would rewrite the tensor that is kept.

    Yields:
        A dict that a forward pass fills: name to output, as the layer puts it out, in the order in which
        the layers finish. Without those that were not called or put out no tensor.

    Raises:
        UserError: there is no layer of that name.

    The hooks are gone when the context ends, also after an error.
    """
    tapped: dict[str, Tensor] = {}
    handles = []
    try:
        for name, module in resolve(model, names).items():
            handles.append(module.register_forward_hook(_cutter(tapped, name)))
        yield tapped
    finally:
        for handle in handles:
            handle.remove()


def _cutter(tapped: dict[str, Tensor], name: str):
    def cut(_module, _inputs, output):
        if not isinstance(output, Tensor):
            return None
        tapped.pop(name, None)  # a module that is called again finishes later than it did
        tapped[name] = output if output.requires_grad else output.detach().requires_grad_()
        return tapped[name].clone()

    return cut


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Within the context, `model` is in eval mode, none of its weights asks for a gradient, gradients are on.

    Afterwards every module has its own mode and every weight its own `requires_grad` again, also after an
    error.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in trained:
            weight.requires_grad_(False)
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
