"""Where the cells of a layer's map look in the image, and maps drawn there.

Libraries draw a map of h cells on S pixels as if cell i looked at pixel (i + ½)·S/h − ½. With strides of 2
and padding on both sides it does not: in a ResNet, cell i of the last map looks at pixel 32 i, 15.5 px left
of and above that. What a cell looks at follows from the layers: if cell i of the input of a layer looks at
offset + stride · i, and the layer has a kernel of k cells, dilation d, padding p and step s, then cell j of
its output looks at

    offset + stride · ((k − 1) d / 2 − p)  +  (stride · s) · j

(Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks", equations 6 to 8).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib.models.network import Network


class Axis(NamedTuple):
    """Where cells look along one axis: cell i looks at pixel `offset + stride · i`, counted from 0."""

    stride: float
    offset: float


class Place(NamedTuple):
    """Where the cells of a map look."""

    rows: Axis
    columns: Axis


def grid(map_size: Sequence[int], image_size: Sequence[int]) -> Place:
    """Return the place of a map whose cells divide the image evenly: cell i looks at (i + ½)·S/h − ½.

    Args:
        map_size: (h, w) of the map.
        image_size: (H, W) of the image.
    """
    scales = [pixels / cells for cells, pixels in zip(map_size, image_size, strict=True)]
    return Place(*(Axis(scale, (scale - 1) / 2) for scale in scales))


def places(module: nn.Module, layers: Mapping[str, nn.Module], example: Tensor) -> dict[str, Place]:
    """Return where the cells of layers' maps look, by name; a layer is left out if that is not known.

    One forward pass without numbers (on PyTorch's meta device) follows convolutions, poolings, paddings and
    resizings; everything else keeps the size of a map and its place. Where the path is lost, as in windows of
    attention, it is taken up again at the next map of the same size.

    Args:
        module: the network, in eval mode.
        layers: modules of it, by name.
        example: an input (1, C, H, W).
    """
    with _recorded(layers) as found, torch.no_grad():
        try:
            _without_numbers(module, example, found)
        except Exception:  # a network that looks at numbers, or makes tensors on a device of its own choice
            found.clear()
            with _Follower(example.shape, found):
                module(example)
    return found.places


def places_of(
    network: Network, layers: Sequence[str], size: tuple[int, int] | None = None
) -> dict[str, Place]:
    """Return where the cells of a network's layers look in images (H, W) of `size`; what is found is kept."""
    size = size or (network.size, network.size)
    kept = _KEPT.setdefault(network.module, {}).setdefault(size, {})
    missing = [name for name in layers if name not in kept]
    if missing:
        modules = {name: network.module.get_submodule(name) for name in missing}
        found = places(network.module, modules, network.example_of(size))
        kept.update({name: found.get(name) for name in missing})
    return {name: place for name in layers if (place := kept[name]) is not None}


_KEPT: WeakKeyDictionary[nn.Module, dict[tuple[int, int], dict[str, Place | None]]] = WeakKeyDictionary()


class _Found(dict):
    """Where maps of each size look at present, and what the layers' maps looked at when they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Place] = {}


@contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[_Found]:
    found = _Found()

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                # The channels may come first or last.
                for size in (tuple(output.shape[2:]), tuple(output.shape[1:3])):
                    if size in found:
                        found.places[name] = found[size]
                        break

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _without_numbers(module: nn.Module, example: Tensor, found: _Found) -> None:
    state = {name: tensor.to("meta") for name, tensor in module.state_dict(keep_vars=True).items()}
    image = example.to("meta")
    with _Follower(image.shape, found):
        torch.func.functional_call(module, state, (image,))


class _Follower(TorchDispatchMode):
    """Follows where maps look through the operations of a forward pass, by the maps' sizes."""

    def __init__(self, shape: torch.Size, found: _Found):
        super().__init__()
        self.found = found
        found[tuple(shape[2:])] = Place(Axis(1.0, 0.0), Axis(1.0, 0.0))

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        move = _MOVES.get(operation.overloadpacket.__name__)
        output = result[0] if isinstance(result, tuple) else result
        image = args[0] if args else None
        if move and isinstance(image, Tensor) and isinstance(output, Tensor) and image.dim() == 4:
            place = self.found.get(tuple(image.shape[2:]))
            if place is not None and output.dim() == 4:
                moved = move(place, image.shape[2:], output.shape[2:], *args[1:])
                self.found[tuple(output.shape[2:])] = moved
        return result


def _each(values: Any) -> tuple[int, int]:
    """Return a setting for rows and columns; PyTorch writes one number for both."""
    first, *rest = values if isinstance(values, list | tuple) else (values,)
    return first, rest[0] if rest else first


def _windows(place: Place, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Place:
    settings = zip(*(map(_each, (kernel, stride, padding, dilation))), strict=True)
    return Place(
        *(
            Axis(axis.stride * s, axis.offset + axis.stride * ((k - 1) * d / 2 - p))
            for axis, (k, s, p, d) in zip(place, settings, strict=True)
        )
    )


def _convolution(
    place: Place,
    _size: Any,
    _out: Any,
    weight: Tensor,
    _bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *_: Any,
) -> Place:
    kernel = weight.shape[2:]
    if not transposed:
        return _windows(place, list(kernel), stride, padding, dilation)
    settings = zip(kernel, *(map(_each, (stride, padding, dilation))), strict=True)
    # Cell i of the input is spread over the cells s i − p … s i − p + (k − 1) d of the output.
    return Place(
        *(
            Axis(axis.stride / s, axis.offset + axis.stride * (p - (k - 1) * d / 2) / s)
            for axis, (k, s, p, d) in zip(place, settings, strict=True)
        )
    )


def _max_pool(
    place: Place,
    _size: Any,
    _out: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    *_: Any,
) -> Place:
    return _windows(place, kernel, stride or kernel, padding, dilation)


def _average_pool(
    place: Place, _size: Any, _out: Any, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any
) -> Place:
    return _windows(place, kernel, stride or kernel, padding, 1)


def _resize(place: Place, size: Sequence[int], out: Sequence[int], *_: Any) -> Place:
    """Cells of another number over the same extent, as of adaptive pooling and of up-sampling."""
    return Place(
        *(
            Axis(axis.stride * n / m, axis.offset + axis.stride * (n / m - 1) / 2)
            for axis, n, m in zip(place, size, out, strict=True)
        )
    )


def _resize_aligned(place: Place, size: Sequence[int], out: Sequence[int], *settings: Any) -> Place:
    """The same, but with `align_corners` the first and the last cells keep their places."""
    if not any(each is True for each in settings):
        return _resize(place, size, out)
    return Place(
        *(
            Axis(axis.stride * (n - 1) / max(m - 1, 1), axis.offset)
            for axis, n, m in zip(place, size, out, strict=True)
        )
    )


def _pad(place: Place, _size: Any, _out: Any, padding: Sequence[int], *_: Any) -> Place:
    left, top = padding[0], padding[2] if len(padding) > 2 else 0
    return Place(
        *(
            Axis(axis.stride, axis.offset - axis.stride * before)
            for axis, before in zip(place, (top, left), strict=True)
        )
    )


_MOVES: dict[str, Callable[..., Place]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _average_pool,
    "_adaptive_avg_pool2d": _resize,
    "pixel_unshuffle": _resize,
    "pixel_shuffle": _resize,
    "adaptive_max_pool2d": _resize,
    "upsample_nearest2d": _resize,
    "upsample_bilinear2d": _resize_aligned,
    "upsample_bicubic2d": _resize_aligned,
    "constant_pad_nd": _pad,
    "reflection_pad2d": _pad,
    "replication_pad2d": _pad,
}


def drawn(values: Tensor, place: Place, size: Sequence[int]) -> Tensor:
    """Return maps (…, h, w) at the size (H, W) of the image, each cell where it looks.

    Between the places of cells, values are interpolated linearly; outside of them, the nearest cell's is
    kept. With `grid`, this is `interpolate(…, mode="bilinear", align_corners=False)`.
    """
    for dimension, (axis, pixels) in enumerate(zip(place, size, strict=True), start=values.dim() - 2):
        values = _stretched(values, axis, pixels, dimension)
    return values


def _stretched(values: Tensor, axis: Axis, pixels: int, dimension: int) -> Tensor:
    cells = values.shape[dimension]
    at = (torch.arange(pixels, dtype=torch.float64, device=values.device) - axis.offset) / axis.stride
    at = at.clamp(0, cells - 1)
    before = at.floor().long().clamp(max=max(cells - 2, 0))
    after = (before + 1).clamp(max=cells - 1)
    share = (at - before).to(values.dtype)
    shape = [1] * values.dim()
    shape[dimension] = pixels
    share = share.view(shape)
    return (
        values.index_select(dimension, before) * (1 - share) + values.index_select(dimension, after) * share
    )
