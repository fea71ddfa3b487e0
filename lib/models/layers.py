"""Inspect the layers of a network: their names, the shapes of their outputs, and the outputs themselves."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lib.runtime.errors import UserError

MOST_NAMES_IN_AN_ERROR = 24

# One layer of a network or several, each by its dotted name or as a module of the network.
Layers = str | nn.Module | Sequence[str | nn.Module]


class CallInterceptor(TorchFunctionMode):
    """Context in which `intercept` is called in place of every function of PyTorch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.intercept(func, args, dict(kwargs or {}))

    def intercept(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return the result of `func(*args, **kwargs)`, or another in its place."""
        raise NotImplementedError


def structure_of(model: nn.Module, images: Tensor) -> tuple[object, ...]:
    """Return a key for what depends on a network's modules and on the shape of its images (B, C, H, W) alone.

    With another module in the place of one, the key is another; with other weights, it is the same.
    """
    return (images.shape, *map(id, model.modules()))


class LayerRow(NamedTuple):
    """One layer of a network.

    Attributes:
        name: name in `model.named_modules()`.
        kind: class of the module.
        shape: shape of the output without the batch dimension; None if the layer was never called.
        parameters: number of the layer's own parameters; a tensor shared by several layers counts once.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int


def table(model: nn.Module, example: Tensor) -> list[LayerRow]:
    """Return one row per layer of `model`, in order of execution.

    A layer is a module that has no children or has parameters of its own; so the rows' parameters add up to
    the model's. Layers that the forward pass does not call come last.

    Args:
        model: the network.
        example: an input batch of any size. It is run once, in eval mode and without gradients; modes and
            hooks are restored afterwards, also after an error.

    Raises:
        UserError: the model does not accept the example, e.g. because its images are too small for the
            number of poolings.
    """
    layers = {name: module for name, module in model.named_modules() if _is_layer(module)}
    try:
        with evaluating(model), record(layers) as outputs, torch.no_grad():
            model(example)
    except (RuntimeError, AssertionError) as error:
        # Text networks take a tuple of tensors, which has no shape to name.
        size = f" of {'×'.join(map(str, example.shape[1:]))}" if isinstance(example, Tensor) else ""
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{type(model).__name__} does not take inputs{size}: {reason}") from None
    counted: set[int] = set()
    rows = []
    for name in [*outputs, *(name for name in layers if name not in outputs)]:
        shape = tuple(outputs[name].shape[1:]) if name in outputs else None
        rows.append(LayerRow(name, type(layers[name]).__name__, shape, _count(layers[name], counted)))
    return rows


def _is_layer(module: nn.Module) -> bool:
    has_children = next(module.children(), None) is not None
    has_parameters = next(module.parameters(recurse=False), None) is not None
    return has_parameters or not has_children


def _count(module: nn.Module, counted: set[int]) -> int:
    """Return the number of the module's own parameters, except those in `counted`, and add them to it."""
    fresh = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
    counted.update(map(id, fresh))
    return sum(parameter.numel() for parameter in fresh)


def in_parts(rows: Iterable[LayerRow], most: int = 8) -> list[LayerRow]:
    """Return a row for each of the model's own children, with the layers in it taken together.

    A child of several layers has the output of its last one. Of more than `most` children, those in the
    middle share a row.
    """
    parts: dict[str, list[LayerRow]] = {}
    for row in rows:
        parts.setdefault(row.name.split(".")[0], []).append(row)
    names = list(parts)
    if len(names) > most:
        middle = names[most // 2 : len(names) - most // 2 + 1]
        whole = [row for name in middle for row in parts[name]]
        parts = {
            name: parts[name] if name != middle[0] else whole
            for name in names
            if name == middle[0] or name not in middle
        }
        parts = {
            f"{middle[0]} … {middle[-1]}" if name == middle[0] else name: part for name, part in parts.items()
        }
    return [_together(name, part) for name, part in parts.items()]


def _together(name: str, part: Sequence[LayerRow]) -> LayerRow:
    if len(part) == 1 and part[0].name == name:
        return part[0]
    shapes = [row.shape for row in part if row.shape is not None]
    kind = f"{len(part)} layers" if len(part) > 1 else part[0].kind
    return LayerRow(name, kind, shapes[-1] if shapes else None, sum(row.parameters for row in part))


def format_table(rows: Iterable[LayerRow]) -> list[str]:
    """Return `rows` as aligned lines of text: a heading, one line per layer, and the total."""
    rows = list(rows)
    cells = [("layer", "kind", "output", "parameters")]
    cells += [(row.name, row.kind, _size(row.shape), f"{row.parameters:,}") for row in rows]
    cells += [("total", "", "", f"{sum(row.parameters for row in rows):,}")]
    name, kind, size, count = (max(map(len, column)) for column in zip(*cells, strict=True))
    return [f"{a:<{name}}  {b:<{kind}}  {c:>{size}}  {d:>{count}}" for a, b, c, d in cells]


def _size(shape: tuple[int, ...] | None) -> str:
    return "not called" if shape is None else "×".join(map(str, shape))


def resolve(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules of `model` with the given names, which are those of `model.named_modules()`.

    Raises:
        UserError: there is no such module; the message lists the existing names, nearest first.
    """
    modules = {name: each for name, each in model.named_modules() if name and _is_callable(each)}
    names = list(names)
    for name in names:
        if name not in modules:
            raise UserError(f"there is no layer {name!r}; choose from {_nearest(name, modules)}")
    return {name: modules[name] for name in names}


def names_of(model: nn.Module, layers: Layers) -> list[str]:
    """Return the dotted names of layers, which may be given by name or as modules of the network.

    Raises:
        UserError: a module is not one of the network's.
    """
    each = [layers] if isinstance(layers, str | nn.Module) else layers
    return [layer if isinstance(layer, str) else _name_in(model, layer) for layer in each]


def _name_in(model: nn.Module, layer: nn.Module) -> str:
    for name, module in model.named_modules():
        if module is layer and name:
            return name
    raise UserError(f"this {type(layer).__name__} is not a layer of the {type(model).__name__}")


def _is_callable(module: nn.Module) -> bool:
    # nn.ModuleList and nn.ModuleDict have no forward; subclasses may, such as DenseNet's blocks.
    return type(module).forward is not nn.Module.forward


def _nearest(wanted: str, names: Iterable[str]) -> str:
    def similarity(name: str) -> float:
        return difflib.SequenceMatcher(a=wanted, b=name).ratio()

    ordered = sorted(names, key=similarity, reverse=True)
    left_out = len(ordered) - MOST_NAMES_IN_AN_ERROR
    shown = ", ".join(ordered[:MOST_NAMES_IN_AN_ERROR])
    return f"{shown} and {left_out} more" if left_out > 0 else shown


@contextmanager
def record(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the latest output of each module while the context is open.

    Yields:
        A dict that forward passes fill: name of the module to its output, detached and on its device, in
        order of first execution. If a module returns several tensors (such as an LSTM), the first is kept.

    The hooks are removed when the context ends, also after an error.
    """
    outputs: dict[str, Tensor] = {}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(_keeper(outputs, name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _keeper(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # A clone, because an in-place ReLU after this module would overwrite the tensor.
        outputs[name] = _first_tensor(output).detach().clone()

    return keep


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode for the length of the context, then restore every module's own mode.

    The modes are restored per module, because a frozen trunk stays in eval mode while the model trains.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
