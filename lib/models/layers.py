"""The layers of a network: their names, the sizes of their feature maps, and what comes out of them."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.runtime.errors import UserError

MOST_NAMES_IN_AN_ERROR = 24


class LayerRow(NamedTuple):
    """One layer of a network.

    `shape` is the output's, without the batch dimension, or None if the forward pass never called the
    layer; `parameters` counts its own, each tensor once however many layers share it.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int


def table(model: nn.Module, example: Tensor) -> list[LayerRow]:
    """Return one row per layer of `model`, in order of execution.

    A layer is a module without children, or one that holds parameters itself, so that the rows'
    parameters add up to the model's. Layers that the forward pass did not call come last.

    Args:
        example: a batch that the model takes, of any size; it is run once, in eval mode and without
            gradients. Modes and hooks are afterwards as they were, also after an error.

    Raises:
        UserError: the model does not take it, e.g. because an image is too small to be halved so often.
    """
    layers = {name: module for name, module in model.named_modules() if _is_layer(module)}
    try:
        with evaluating(model), record(layers) as outputs, torch.no_grad():
            model(example)
    except (RuntimeError, AssertionError) as error:
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
    """Return the size of the module's own parameters not yet `counted`, and add them to that set."""
    fresh = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
    counted.update(map(id, fresh))
    return sum(parameter.numel() for parameter in fresh)


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
    """Return the modules of `model` that `names` name, as in `model.named_modules()`.

    Raises:
        UserError: there is no such module; the message lists the names there are, nearest first.
    """
    modules = {name: each for name, each in model.named_modules() if name and _is_callable(each)}
    names = list(names)
    for name in names:
        if name not in modules:
            raise UserError(f"there is no layer {name!r}; choose from {_nearest(name, modules)}")
    return {name: modules[name] for name in names}


def _is_callable(module: nn.Module) -> bool:
    # Lists and dictionaries of layers are not; DenseNet's blocks, which are such dictionaries, are.
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
    """Within the context, keep what each module put out last.

    Yields:
        A dict that a forward pass fills: name of the module to its output, detached, on its device, in
        order of first execution. Of a module that puts out several tensors (an LSTM), the first.

    The hooks are gone when the context ends, also after an error.
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


def _keeper(outputs: dict[str, Tensor], name: str):
    def keep(_module, _inputs, output):
        # A clone, because an in-place ReLU behind this module would rewrite the tensor.
        outputs[name] = _first_tensor(output).detach().clone()

    return keep


def _first_tensor(output) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode, and give every module its own mode back at the end.

    Module by module, because a frozen trunk stays in eval mode inside a model that is training.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
