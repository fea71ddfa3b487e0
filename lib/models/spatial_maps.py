"""Recognise which outputs of a network's modules are spatial maps of the image, with channels first or last.

The numbers of a shape do not say which dimension holds the channels: (B, 96, 96, 96) may be either. So a
forward pass is followed function by function. A convolution puts its channels first, a linear layer or a
layer norm has its features last, a permutation moves them, and most other functions leave them in place.
Where reshaping hides the channels, a convolution, a pooling or a batch norm that follows tells them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lib.models.layers import CallInterceptor, structure_of


class Layout(NamedTuple):
    """The dimensions of a tensor that depends on the images.

    Attributes:
        channels: number of the dimension of channels or features; None if unknown.
        height, width: numbers of the dimensions of space; None if unknown, or if they are flattened.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def is_map(self) -> bool:
        """Whether the tensor is (B, C, h, w) with its last three dimensions in any order."""
        return {*self} == {1, 2, 3}


CHANNELS_FIRST = Layout(1, 2, 3)
CHANNELS_LAST = Layout(3, 1, 2)
_TOKENS = Layout(2)  # (B, tokens, C)
_UNKNOWN = Layout()

# By name, because e.g. `torch.relu`, `Tensor.relu` and `functional.relu` are different objects of one name.
_OVER_SPACE = {
    *("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "lp_pool2d", "max_unpool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "batch_norm", "instance_norm", "group_norm"),
    *("interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "local_response_norm", "grid_sample"),
}
_OVER_LAST_DIMENSION = {"linear", "layer_norm", "rms_norm"}
_ATTENTION = {"multi_head_attention_forward", "scaled_dot_product_attention"}
_RESHAPING = {"view", "reshape", "flatten", "unflatten"}
# Their result may have the shape of an argument by chance, and means something else.
_MIXING = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum", "outer", "__get__", "lstm", "gru", "rnn_tanh"}
# Their result has as many dimensions, with the same meaning, but maybe another size.
_RESIZING = {"cat", "concat", "concatenate", "pad", "__getitem__", "narrow", "chunk", "split", "roll", "mean"}


@dataclass
class _Known:
    """The layout of a tensor, shared by those that elementwise functions make of it."""

    layout: Layout


class Layouts:
    """Layouts of the modules' outputs in the forward passes of a context of `follow`.

    Attributes:
        several: names of the modules that return several tensors, of which the first counts.
    """

    def __init__(self) -> None:
        self.several: set[str] = set()
        self.of: dict[str, _Known] = {}  # of the latest outputs that depend on the images, by module
        self.attends = False  # whether attention was computed, so that there are tokens
        self.tensors = WeakTensorKeyDictionary()

    def spatial_map(self, name: str, output: object, images: Tensor) -> Tensor | None:
        """Return the output of module `name` as a map (B, C, h, w) with h·w > 1, or None if it is no map.

        Of outputs with four dimensions, those count whose aspect ratio h : w is about that of the images.
        In a network with attention, tokens (B, tokens, C) are arranged in their grid, without the class
        token. Other outputs with three dimensions are not maps, e.g. the states of a recurrent network over
        the rows of an image.

        Args:
            name: dotted name of the module.
            output: its output, or a gradient of the same shape.
            images: input of the network, (B, ?, H, W).
        """
        if name not in self.of or not isinstance(output, Tensor) or len(output) != len(images):
            return None
        layout = self.of[name].layout
        if output.dim() == 3 and layout.channels == 2 and self.attends:
            output = _token_map(output, images)
        elif output.dim() == 4 and layout.is_map:
            output = output.movedim([dim for dim in layout if dim is not None], [1, 2, 3])
        else:
            return None
        if output is None:
            return None
        height, width = output.shape[2:]
        off_by = abs(height - width * images.shape[2] / images.shape[3])
        return output if height * width > 1 and off_by <= max(2, 0.2 * height) else None

    def is_unknown(self, name: str, output: object) -> bool:
        """Return whether `output` of module `name` has four dimensions, but the channels are not known."""
        return (
            name in self.of
            and not self.of[name].layout.is_map
            and isinstance(output, Tensor)
            and output.dim() == 4
        )


@contextmanager
def follow(model: nn.Module, images: Tensor) -> Iterator[Layouts]:
    """Within the context, a forward pass of `model` on `images` fills the layouts that it yields.

    What was found is kept for other images of the same shape, as long as the network has the same modules:
    following costs a hundredth of a forward pass. The hooks are removed when the context ends, also after an
    error, and then nothing is kept.
    """
    kept, key = _KEPT.setdefault(model, {}), structure_of(model, images)
    if key in kept:
        yield kept[key]
        return
    layouts = Layouts()
    layouts.tensors[images] = _Known(CHANNELS_FIRST)
    handles = [
        module.register_forward_hook(_noting(layouts, name)) for name, module in model.named_modules() if name
    ]
    try:
        with _Following(layouts):
            yield layouts
    finally:
        for handle in handles:
            handle.remove()
    if layouts.of:
        kept[key] = layouts


_KEPT: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Layouts]] = WeakKeyDictionary()


def _noting(layouts: Layouts, name: str) -> Callable[[nn.Module, Any, Any], None]:
    """Return the forward hook that notes the layout of the output of module `name`."""

    def note(_module: nn.Module, inputs: Any, output: Any) -> None:
        found = next(_tensors([output]), None)
        if found is None:
            return
        known = layouts.tensors.get(found)
        if known is None and any(each in layouts.tensors for each in _tensors(inputs)):
            # Computed by what the mode does not see, e.g. an autograd function of the network's own.
            known = layouts.tensors[found] = _Known(_UNKNOWN)
        if known is not None:
            layouts.of[name] = known
            if found is not output:
                layouts.several.add(name)

    return note


class _Following(CallInterceptor):
    """Context that gives each tensor computed from a tensor with a layout a layout of its own."""

    def __init__(self, layouts: Layouts) -> None:
        super().__init__()
        self._layouts, self._known = layouts, layouts.tensors

    def intercept(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        # Before the call, which may change an argument in place.
        sources = [
            (known, each.shape)
            for each in _tensors([*args, *kwargs.values()])
            if (known := self._known.get(each)) is not None
        ]
        result = func(*args, **kwargs)
        if not sources:
            return result
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.removesuffix("_")
        self._layouts.attends |= name in _ATTENTION
        for each in _tensors([result]):
            self._known[each] = _result_of(name, sources, each, args, kwargs)
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)
        elif isinstance(each, dict):
            yield from _tensors(each.values())


def _result_of(
    name: str,
    sources: Sequence[tuple[_Known, torch.Size]],
    result: Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> _Known:
    """Return what is known of the `result` of function `name`.

    Args:
        name: name of the function, without the underscore of its in-place variant.
        sources: layouts and shapes of those of its arguments that depend on the images, one or more.
        result: the tensor that it returned.
        args, kwargs: its arguments.
    """
    source, shape = sources[0]
    last = result.dim() - 1
    if name in _OVER_SPACE:
        if len(shape) == 4 and not source.layout.is_map:
            source.layout = CHANNELS_FIRST
        return _Known(CHANNELS_FIRST if last == 3 and source.layout == CHANNELS_FIRST else _UNKNOWN)
    if name in _OVER_LAST_DIMENSION:
        known = source.layout if source.layout.channels == last else _UNKNOWN
        return _Known(_TOKENS if last == 2 else known)
    if name in _MOVES:
        return _Known(_moved(source.layout, _MOVES[name](len(shape), args, kwargs)))
    if name in _RESHAPING:
        return _Known(_reshaped(source.layout, shape, result.shape))
    if name in _MIXING or name in _ATTENTION:
        return _Known(_TOKENS if name == "multi_head_attention_forward" and last == 2 else _UNKNOWN)
    if name in _RESIZING:
        return _Known(source.layout if len(shape) == result.dim() else _UNKNOWN)
    alike = [known for known, each in sources if each == result.shape]
    return max(alike, key=lambda known: 3 - known.layout.count(None), default=_Known(_UNKNOWN))


def _moved(layout: Layout, order: Sequence[int]) -> Layout:
    """Return the layout of a tensor whose dimension i was dimension `order[i]` before."""
    if not order:
        return _UNKNOWN
    return Layout(*(None if place is None else list(order).index(place) for place in layout))


def _reshaped(layout: Layout, before: torch.Size, after: torch.Size) -> Layout:
    """Return the layout after reshaping, which leaves those dimensions alone that begin or end both shapes.

    The only dimension beside the batch, the rows and the columns is that of the channels.
    """
    shift = len(after) - len(before)

    def place(dim: int | None) -> int | None:
        if dim is None or before[: dim + 1] == after[: dim + 1]:
            return dim
        return dim + shift if dim + shift > 0 and before[dim:] == after[dim + shift :] else None

    channels, height, width = map(place, layout)
    if len(after) == 4 and channels is None and height and width:
        channels = 6 - height - width
    return Layout(channels, height, width)


def _permuted(count: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    dims = kwargs.get("dims", args[1:])
    dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return [int(dim) % count for dim in dims]


def _transposed(count: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    given = [*args[1:], *(kwargs[key] for key in ("dim0", "dim1", "axis0", "axis1") if key in kwargs)]
    first, second = (int(dim) % count for dim in given[:2])
    order = list(range(count))
    order[first], order[second] = second, first
    return order


def _dims_moved(count: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    given = [*args[1:], *(kwargs[key] for key in ("source", "destination") if key in kwargs)]
    pairs = [[each] if isinstance(each, int) else list(each) for each in given[:2]]
    sources, places = ([dim % count for dim in each] for each in pairs)
    rest = iter(dim for dim in range(count) if dim not in sources)
    return [sources[places.index(dim)] if dim in places else next(rest) for dim in range(count)]


# Functions that move dimensions: for each, the dimension that each of the result's was before.
_MOVES: dict[str, Callable[[int, Sequence[Any], Mapping[str, Any]], list[int]]] = {
    "permute": _permuted,
    "transpose": _transposed,
    "swapaxes": _transposed,
    "swapdims": _transposed,
    "movedim": _dims_moved,
    "moveaxis": _dims_moved,
}


def _token_map(tokens: Tensor, images: Tensor) -> Tensor | None:
    """Arrange the last tokens in a grid with exactly the images' aspect ratio; None if there is none."""
    image_height, image_width = images.shape[2:]
    # All tokens are patches, or all but the first, the class token.
    for patches in (tokens.shape[1], tokens.shape[1] - 1):
        height = round((patches * image_height / image_width) ** 0.5)
        width = patches // max(height, 1)
        if height * width == patches > 0 and height * image_width == width * image_height:
            return tokens[:, -patches:].transpose(1, 2).unflatten(2, (height, width))
    return None
