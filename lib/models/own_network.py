"""Networks of the user's own, made by a class or a function in a file of theirs.

`FILE.py:NAME` is imported, which runs the user's own code. What the network returns may be logits (B,
classes), a tuple or list whose first entry they are, or a dictionary or object with `logits`, as in
transformers.
"""

import ast
import difflib
import hashlib
import importlib.util
import inspect
import math
import site
import sys
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lib.data import class_names, folders
from lib.data.preprocessing import Preprocessing
from lib.models import outputs as answered
from lib.models.network import Network
from lib.runtime import checkpoint, weights
from lib.runtime.errors import UserError, expect_errors_in, told_of_user_code
from lib.runtime.files import existing_file
from lib.runtime.settings import Settings

# The mean and standard deviation of ImageNet's pixels, with which most networks for photographs are trained.
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_USUAL_SIZE = 224
_SMALLEST_STD = 1e-6  # as where networks are trained
# Entries of dictionaries and attributes of objects that hold the logits.
_LOGITS = ("logits", "out", "output", "prediction", "predictions")


@dataclass(frozen=True)
class OwnNetwork(Settings):
    """The flags that describe a network of the user's own.

    What is left out is taken from the constants CLASSES, SIZE, MEAN and STD of the file if it has them, from
    the first convolution (the number of channels), or is that of ImageNet's networks.
    """

    network: str
    network_args: Sequence[str] | None = None
    weights: str | None = None
    classes: str | None = None
    size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    multi_label: bool = False


def load(settings: OwnNetwork, device: torch.device | str = "cpu") -> Network:
    """Return the network that the settings describe, with its weights.

    Raises:
        UserError: the file or the name is not there, the user's code raises an exception, the weights or the
            class names do not fit, or the network does not answer with logits.
    """
    if settings.weights == "random" and not Path(settings.weights).exists():
        raise UserError(
            "--weights random is for torchvision's networks: without --weights, one of your own has those "
            "with which its file makes it"
        )
    loaded = set(sys.modules)
    source, module = _make(settings)
    if settings.weights:
        _load_weights(module, settings.weights)
    module.register_forward_hook(lambda _module, _inputs, output: logits_of(output))
    module.eval().to(device)
    how = _preprocessing(settings, source, module)
    network = Network(module, (), how, settings.network.rpartition(":")[2], independent=settings.multi_label)
    outputs = _count_outputs(network)
    # Only now, because the user's code may import modules when it first computes.
    network = replace(network, code=_digest_of_code(source, settings, loaded))
    classes = settings.classes and class_names.read(settings.classes)
    classes = classes or _names_in(source, outputs)
    return named(network, classes, outputs)


def named(network: Network, classes: Sequence[str], outputs: int) -> Network:
    """Return the network with names for its classes; numbers if `classes` is empty.

    Raises:
        UserError: the number of names is not that of the classes.
    """
    count = max(outputs, 2)  # one logit tells two classes apart
    names = tuple(classes) or tuple(map(str, range(count)))
    if len(names) != count:
        told = "one output, which tells 2 classes apart" if outputs == 1 else f"{outputs} outputs"
        raise UserError(f"{network.name} has {told}, and --classes names {len(names)}")
    return replace(network, classes=names, independent=network.independent and outputs > 1)


def logits_of(output: Any) -> Any:
    """Return the logits in what a network returns: itself, its first entry, or its `logits`."""
    if isinstance(output, Tensor):
        return output
    for name in _LOGITS:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        return tensors[0] if len(tensors) == 1 else output
    return output[0] if isinstance(output, tuple | list) and output else output


def _make(settings: OwnNetwork) -> tuple[ModuleType, nn.Module]:
    """Import the user's file and make the network; return both."""
    file, colon, name = settings.network.rpartition(":")
    if not colon or not name.isidentifier():
        raise UserError(
            f"--network {settings.network}: give FILE.py:NAME, the class or function that makes it"
        )
    if not Path(file).suffix and Path(f"{file}.py").is_file():
        raise UserError(f"--network {settings.network}: give {file}.py:{name}, with the file's ending")
    path = existing_file(file)
    expect_errors_in(path)
    source = _imported(path)
    make = getattr(source, name, None)
    if not callable(make):
        own = {name: each for name, each in vars(source).items() if callable(each) and name[0] != "_"}
        known = [name for name, each in own.items() if getattr(each, "__module__", "") == source.__name__]
        near = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0)
        raise UserError(f"{path} has no class or function {name}; it has {folders.first_few(near) or 'none'}")
    arguments = _arguments(settings.network_args or ())
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{settings.network} cannot be called so: {error}; see --network-args") from None
    except ValueError:  # a callable without a signature
        pass
    made = _run(lambda: make(**arguments), settings.network)
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{settings.network} makes an object of the type {type(made).__name__}, not a torch.nn.Module"
        )
    return source, made


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: its name must end in .py")
    source = importlib.util.module_from_spec(spec)
    sys.modules[source.__name__] = source  # as dataclasses and pickles of the file expect
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # modules beside the file, which it may import at any time
        sys.path.append(folder)
    loader = spec.loader
    _run(lambda: loader.exec_module(source), str(path))
    return source


def _digest_of_code(source: ModuleType, settings: OwnNetwork, loaded: Collection[str]) -> str:
    """Return a hash of the user's code and of the arguments with which it is called.

    The code is that of their file and of the modules that it imports, those of packages left out, which are
    installed and seldom change.

    Args:
        source: the module of the user's file.
        settings: the flags of their network.
        loaded: names of the modules that were loaded before it.
    """
    folder = Path(str(source.__file__)).resolve().parent
    digest = hashlib.sha256(repr((settings.network_args or (), source.__name__)).encode())
    digest.update(settings.network.rpartition(":")[2].encode())
    for name, module in sorted(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "").resolve()
        is_theirs = name not in loaded or folder in file.parents
        if module is source or (is_theirs and file.is_file() and not _is_installed(name, file)):
            digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _is_installed(name: str, file: Path) -> bool:
    """Return whether a module is of a package or of Python, or of this project."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    places = {Path(each).resolve() for each in (*map(sysconfig.get_path, kinds), site.getusersitepackages())}
    return name.partition(".")[0] in ("lib", "__main__") or bool(places & set(file.parents))


def _run(call: Any, what: str) -> Any:
    """Call the user's code; whatever it raises becomes one line with the line number in their file."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise UserError(told_of_user_code(error, what)) from None


def _arguments(given: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments from `key=value` texts; a value that is no Python literal is a text."""
    arguments = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--network-args {each}: give key=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = value
    return arguments


def _load_weights(module: nn.Module, file: str) -> None:
    content = weights.read(file)
    found = weights.state_dict_of(content, file) if isinstance(content, Mapping) else content
    weights.check_state_dict(file, found)
    checkpoint.restore_weights(module, weights.named_as(module.state_dict(), found, file), file)


def _preprocessing(settings: OwnNetwork, source: ModuleType, module: nn.Module) -> Preprocessing:
    channels = settings.channels or _channels(module)
    size = settings.size or getattr(source, "SIZE", _USUAL_SIZE)
    size = size[0] if isinstance(size, tuple | list) else size
    ends = {}
    for name in ("mean", "std"):
        constant = getattr(source, name.upper(), None)
        values = getattr(settings, name) or (_usual(name, channels) if constant is None else constant)
        values = tuple(values) if isinstance(values, tuple | list) else (values,)
        values = values * channels if len(values) == 1 else values
        said = f"--{name}" if getattr(settings, name) else f"{name.upper()} in the network's file"
        if len(values) != channels or not all(isinstance(each, int | float) for each in values):
            raise UserError(
                f"{said} has {len(values)} numbers, and the images have {channels} channels: "
                f"give --{name} one number, or one a channel"
            )
        least = _SMALLEST_STD if name == "std" else -math.inf
        wrong = [each for each in values if not (math.isfinite(each) and each >= least)]
        if wrong:
            of_size = f" of at least {least:g}" if name == "std" else ""
            raise UserError(f"{said}: {wrong[0]} is no finite number{of_size}")
        ends[name] = tuple(map(float, values))
    if not isinstance(size, int) or size < 1:
        raise UserError(f"SIZE = {size!r} in the network's file is no side of an image: give --size")
    return Preprocessing(size, channels, ends["mean"], ends["std"], resize=size)


def _usual(name: str, channels: int) -> tuple[float, ...]:
    return _IMAGENET[name] if channels == 3 else {"mean": (0.0,), "std": (1.0,)}[name]


def _channels(module: nn.Module) -> int:
    """Return the channels of the first convolution's input, if images can have so many; else 3."""
    first = next((each for each in module.modules() if isinstance(each, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else 3


def _count_outputs(network: Network) -> int:
    """Return the number of logits that the network answers a grey image with.

    Raises:
        UserError: it does not take such an image, or answers with something else.
    """
    shape = "×".join(map(str, network.example.shape[1:]))
    try:
        with torch.no_grad():
            output = network.module(network.example)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{network.name} does not take images of {shape} ({type(error).__name__}: {text}): "
            "give its --size and --channels"
        ) from None
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 1 or not output.shape[1]:
        what = "×".join(map(str, output.shape)) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{network.name} answers with {what}, not with logits of a batch (1×classes)")
    answered.check_finite(output, network.name)
    return output.shape[1]


def _names_in(source: ModuleType, outputs: int) -> tuple[str, ...]:
    """Return the constant CLASSES of the user's file, if it names the outputs."""
    names = getattr(source, "CLASSES", ())
    fits = isinstance(names, tuple | list) and len(names) == max(outputs, 2)
    return tuple(map(str, names)) if fits else ()
