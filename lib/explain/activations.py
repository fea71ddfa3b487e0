"""The activations of a network: layers with spatial maps, and gradients with respect to a layer's output."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib.explain.rectifiers import RectifierRule
from lib.models.layers import evaluating, record, resolve, structure_of
from lib.models.spatial_maps import Layouts, follow
from lib.runtime.errors import UserError


class SpatialLayer(NamedTuple):
    """A module whose output is a spatial map of `shape` (C, h, w); transformer tokens count as their grid."""

    name: str
    kind: str
    shape: tuple[int, int, int]


def spatial_layers(model: nn.Module, example: Tensor) -> list[SpatialLayer]:
    """Return the modules of `model` whose output is a spatial map, in the order in which they finish.

    Args:
        model: network.
        example: images (B, C, H, W), for one forward pass without gradients.
    """
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    maps, _ = _maps(model, example)
    return [
        SpatialLayer(name, kinds[name], (each.size(1), each.size(2), each.size(3)))
        for name, each in maps.items()
    ]


def _maps(model: nn.Module, example: Tensor) -> tuple[dict[str, Tensor], Layouts]:
    """Return the spatial map of each module that has one, as the modules finish, and the outputs' layouts."""
    modules = {name: module for name, module in model.named_modules() if name}
    with evaluating(model), record(modules) as outputs, follow(model, example) as layouts, torch.no_grad():
        model(example)
    # Maps of what a network generates are none of its input: those of an autoencoder's decoder.
    generators = tuple(f"{name}." for name in getattr(model, "generators", ()))
    found = {
        name: layouts.spatial_map(name, output, example)
        for name, output in outputs.items()
        # Only a single tensor can be captured.
        if name not in layouts.several and not f"{name}.".startswith(generators)
    }
    return {name: each for name, each in found.items() if each is not None}, layouts


def default_layer(model: nn.Module, example: Tensor) -> str:
    """Return the name of the last module with a spatial map (h·w > 1) on which the output depends.

    If the output is a map itself, it is the last of those with the coarsest maps. An adaptive pooling (VGG
    has one) is left out, because it only resizes features.

    Args:
        model: network.
        example: images (B, C, H, W), for two forward passes and one backward pass; the answer is kept for
            images of the same shape.

    Raises:
        UserError: there is no such module.
    """
    kept, key = _DEFAULTS.setdefault(model, {}), structure_of(model, example)
    if key not in kept:
        kept[key] = _default_layer(model, example)
    return kept[key]


_DEFAULTS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], str]] = WeakKeyDictionary()


def _default_layer(model: nn.Module, example: Tensor) -> str:
    pooling = {name for name, each in model.named_modules() if isinstance(each, nn.AdaptiveAvgPool2d)}
    maps, layouts = _maps(model, example)
    names = [name for name in maps if name not in pooling]
    with evaluating(model), torch.no_grad():
        answer = model(example)
    if names and isinstance(answer, Tensor) and answer.dim() == 4:
        # The last maps of a network that answers with a map are nearly its answer. The coarsest ones are the
        # most abstract; among these, class scores say nothing but the answer, either.
        cells = min(maps[name][0, 0].numel() for name in names)
        coarse = [name for name in names if maps[name][0, 0].numel() == cells]
        names = [name for name in coarse if maps[name].shape[1] > answer.shape[1]] or coarse
    reached: tuple[Tensor | None, ...] = ()
    with explaining(model), capture_activations(model, names) as tapped:
        with RectifierRule("deconvnet"):
            output = model(example)
        # A gradient of NaN at the output reaches every activation that the output depends on. Weights of zero
        # (the head of a new vision transformer) do not stop it, and under this rule neither do closed ReLUs.
        # It does not reach the patch tokens after the last attention, because only the class token is used
        # from there on; a map of these tokens would be zero.
        if output.requires_grad:
            reached = torch.autograd.grad(
                output, list(tapped.values()), torch.full_like(output, torch.nan), allow_unused=True
            )
    for name, gradient in reversed(list(zip(tapped, reached, strict=False))):
        found = layouts.spatial_map(name, gradient, example)
        if found is not None and found.isnan().any():
            return name
    raise UserError(
        "no layer of the network has a spatial map on which its output depends: class activation maps need "
        "convolutions; integrated gradients, occlusion and Shapley values do not"
    )


@contextmanager
def capture_activations(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, keep the last output of some layers, as tensors to take gradients with respect to.

    The network is frozen, so the autograd graph of a forward pass begins at the first of these layers: its
    output becomes a leaf that requires a gradient. The outputs of the later layers are nodes of that graph.
    Each layer passes on a clone of the kept output, because an in-place ReLU after it would overwrite it.

    Yields:
        A dict that a forward pass fills: name to the layer's output, in the order in which the layers finish.
        Layers that were not called, or whose output is not a tensor, are missing.

    Raises:
        UserError: there is no layer of that name.

    The hooks are removed when the context ends, also after an error.
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


def _cutter(tapped: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    """Return the forward hook that keeps the output of layer `name` in `tapped` and passes on a clone."""

    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        tapped.pop(name, None)  # if a module is called twice, the second call decides its place in the order
        tapped[name] = output if output.requires_grad else output.detach().requires_grad_()
        return tapped[name].clone()

    return cut


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Within the context, `model` is in eval mode, its weights require no gradient, and autograd is enabled.

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
