"""The networks, made by name: `build('lenet5', classes=10, channels=1, size=28)`.

A new network is one entry here and its class. Its options become flags, `--help`, checks and the
configuration in checkpoints; `--list-models` prints the table. Nothing here imports torch when it is
imported, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.runtime import memory
from lib.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class Option(NamedTuple):
    """A setting of a network, given by a flag of the same name.

    Attributes:
        kind: `count` (an integer from `least` to `most`), `share` (a number from 0 to `most`), `switch` (on
            or off), or `choice` (one of `values`).
        help: its help, without the names of the networks.
        default: its value where nothing else says one; None leaves it to the class.
        argument: name of the class's argument, if it is another than the flag's.
    """

    name: str
    kind: str
    help: str
    default: Any = None
    least: int = 1
    most: float = 100_000
    values: tuple[str, ...] = ()
    argument: str = ""


@dataclass(frozen=True)
class Entry:
    """A network of this project.

    Attributes:
        name: as it is typed and kept in checkpoints.
        maker: module of `lib.models` and class, e.g. `digits:LeNet5`.
        takes: the inputs that it takes, in words.
        options: settings of its own.
        fixed: arguments of the class that are the same for all networks of this name.
        sizes: channels and size of an image that it takes, to count its parameters by; empty: not of images.
        is_small: a second thread gains nothing, see `is_small`.
        is_segmenter: it answers with a class for each pixel, and not for the image.
        is_autoencoder: it answers with images and not with classes.
    """

    name: str
    maker: str
    takes: str
    options: tuple[Option, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    is_small: bool = False
    is_segmenter: bool = False
    is_autoencoder: bool = False


_ROW_OPTIONS = (
    Option("hidden", "count", "size of the state", 256),
    Option("depth", "count", "number of recurrent layers", 1, most=100),
)


def _sizes(default: int) -> tuple[Option, Option]:
    return (
        Option("embedding_size", "count", "size of a word's vector", default, argument="embedding"),
        Option("hidden_size", "count", "size of the state of one direction", default, argument="hidden"),
    )


_LSTM_OPTIONS = (
    *_sizes(128),
    Option("depth", "count", "number of LSTM layers", 1, most=100),
    Option("bidirectional", "switch", "also read phrases backwards", True),
    Option(
        "pooling",
        "choice",
        "how the states of a phrase are pooled into its features",
        "mean+max",
        values=("last", "max", "mean", "mean+max", "attention"),
        argument="pool",
    ),
    Option(
        "bigrams",
        "count",
        "number of vectors that all pairs of adjacent words share by hashing; 0 for none",
        65536,
        least=0,
        most=2**31,
    ),
)

_VAE_OPTIONS = (
    Option("net", "choice", "kind of encoder and decoder", values=("linear", "conv")),
    Option("latent", "count", "number of latent units", most=4096),
    Option("hidden", "count", "units of each hidden layer"),
    Option("depth", "count", "number of hidden layers of the encoder, and of the decoder", most=100),
    Option("dropout", "share", "share of the encoder's hidden units that training drops", most=0.95),
    Option(
        "activation",
        "choice",
        "activation function of the hidden layers; guided backpropagation needs relu",
        values=("silu", "relu"),
    ),
    Option(
        "loss",
        "choice",
        "likelihood of the pixels: bce, Bernoulli with pixels as probabilities; mse, normal with the "
        "variance of the residuals",
        values=("bce", "mse"),
    ),
)


def _rows(cell: str) -> Entry:
    takes = "images of any size, read row by row"
    return Entry(f"row-{cell}", "rows:RowClassifier", takes, _ROW_OPTIONS, {"cell": cell}, (1, 28))


def _fcn(finest: int) -> Entry:
    encoders = ("alexnet", "vgg16", "resnet18", "squeezenet1_1", "mobilenet_v2")
    return Entry(
        f"fcn{finest}",
        "fcn:FCN",
        "coloured images of 63 px or more",
        (
            Option(
                "encoder",
                "choice",
                "network of torchvision's that makes its maps",
                "alexnet",
                values=encoders,
            ),
        ),
        {"finest": finest},
        (3, 96),
        is_segmenter=True,
    )


def _vae(name: str, kind: str) -> Entry:
    return Entry(
        name,
        f"vae:{kind}",
        "square images, a multiple of 4 px",
        _VAE_OPTIONS,
        sizes=(1, 28),
        is_autoencoder=True,
    )


_TABLE = (
    Entry("mnist-classifier", "digits:MnistClassifier", "grey images", sizes=(1, 28), is_small=True),
    Entry("lenet5", "digits:LeNet5", "images of 28 or 32 px", sizes=(1, 28)),
    Entry("deep-cnn", "digits:DeepCNN", "images of 20 px or more", sizes=(1, 28)),
    Entry(
        "simple-cnn",
        "small:SimpleCNN",
        "images of 16 px or more",
        (
            Option("bn", "switch", "batch normalisation behind each convolution"),
            Option("dropout", "share", "share of the features that training drops", most=0.95),
        ),
        sizes=(3, 32),
    ),
    Entry("fast-cnn", "small:FastCNN", "images of 16 px or more", sizes=(3, 32)),
    _rows("rnn"),
    _rows("lstm"),
    _rows("gru"),
    Entry("lstm", "phrase_classifiers:SentimentClassifier", "phrases", _LSTM_OPTIONS, is_small=True),
    Entry("plain", "phrase_classifiers:PlainClassifier", "phrases", _sizes(512), is_small=True),
    Entry(
        "small",
        "segmentation:SmallSegmenter",
        "images of 16 px or more",
        (
            Option("width", "count", "channels of the first layer", 16, most=256),
            Option(
                "dropout",
                "share",
                "share of the channels before the logits that training drops",
                0.1,
                most=0.95,
            ),
        ),
        sizes=(3, 96),
        is_segmenter=True,
    ),
    _fcn(32),
    _fcn(16),
    _fcn(8),
    _vae("vae", "Vae"),
    _vae("cvae", "ConditionalVae"),
    _vae("dvae", "Vae"),
    _vae("vae-gan", "VaeGan"),
    Entry("ensemble", "phrase_classifiers:ensemble_of", "phrases", is_small=True),
)

_LARGE = 5000  # a smaller layer takes less than a gigabyte

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _TABLE}


def build(name: str, **config: Any) -> nn.Module:
    """Return a new network, one of this project's or of torchvision's classifiers.

    Args:
        name: which.
        config: plain values, as a checkpoint keeps them.

    Raises:
        UserError: no network of this name, or one that cannot be made so.
    """
    check_name(name)
    try:
        _check_memory(name, config)
        return _maker(name)(**config)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # a damaged checkpoint may give a maker anything
        if "allocate" in str(error):  # no memory: `lib.cli.exits` says so
            raise
        raise UserError(f"model {name} cannot be made from {config}: {error}") from None


def _check_memory(name: str, config: Mapping[str, Any]) -> None:
    """Raise a UserError if the weights of the network exceed the memory of this machine.

    Linux grants such memory and kills the process when it is written to, without a word.
    """
    if name not in ENTRIES or max(_counts(config), default=0) < _LARGE:
        return
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _maker(name)(**config)
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    there = memory.physical()
    if there and needed > there:
        raise UserError(
            f"the weights of {name} with {config} take {memory.spelled(needed)}, "
            f"and this machine has {memory.spelled(there)} of memory"
        )


def _counts(config: Any) -> Iterator[int]:
    """Yield the integers of a configuration, which may hold those of other networks."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _counts(value)
    elif isinstance(config, int):
        yield config


def _maker(name: str) -> Callable[..., nn.Module]:
    if name not in ENTRIES:
        from lib.models import transfer

        return lambda **config: transfer.build(name, **config)
    entry = ENTRIES[name]
    module, _, kind = entry.maker.partition(":")
    make = getattr(importlib.import_module(f"lib.models.{module}"), kind)
    return lambda **config: make(**entry.fixed, **config)


def is_own(name: str) -> bool:
    """Return whether `name` is one of this project's networks, and not of torchvision's."""
    return name in ENTRIES


def is_small(name: str) -> bool:
    """Return whether one thread computes this network as fast as several.

    A second thread gains the smallest nothing: 128 images take mnist-classifier 5.7 ms on one thread and
    6.8 ms on two, where lenet5 takes 29 and 16 ms. Where another process takes its core, every layer waits
    for it: beside five busy processes on two cores, mnist-classifier did 855 updates in 603 s on two threads,
    and 3,835 in 50 s on one.
    """
    return name in ENTRIES and ENTRIES[name].is_small


def check_name(name: str) -> None:
    """Raise a UserError that suggests the nearest names, if there is no network of this name."""
    if not is_own(name):
        from lib.models import pretrained

        pretrained.check_name(name, also=ENTRIES)


def options(names: Sequence[str]) -> dict[str, tuple[Option, list[str]]]:
    """Return the options of some networks by name, each with the networks that have it."""
    found: dict[str, tuple[Option, list[str]]] = {}
    for name in names:
        for option in ENTRIES[name].options:
            found.setdefault(option.name, (option, []))[1].append(name)
    return found


def option_defaults(name: str) -> dict[str, Any]:
    """Return the defaults of a network's options, by name of the flag; torchvision's networks have none."""
    own = ENTRIES[name].options if name in ENTRIES else ()
    return {option.name: option.default for option in own if option.default is not None}


def check_options(name: str, given: Mapping[str, Any]) -> None:
    """Raise a UserError if `given`, flags by name, has an option that the network `name` does not have."""
    alike = [each for each in ENTRIES if _kind(each) == _kind(name)]
    for option, networks in options(alike).values():
        if name not in networks and given.get(option.name) not in (None, False):
            flag = f"--{option.name.replace('_', '-')}"
            raise UserError(f"{flag} goes with {', '.join(networks)} alone, not with {name}")


def _kind(name: str) -> tuple[bool, str]:
    """Return whether a network takes images, as all of torchvision's do, and what it answers but classes."""
    entry = ENTRIES.get(name)
    if entry is None:
        return True, ""
    return bool(entry.sizes), "images" if entry.is_autoencoder else "masks" if entry.is_segmenter else ""


def arguments(name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network's class that its options give, where they have a value.

    Args:
        name: name of the network.
        flags: values of flags by name; may hold others, too.
    """
    own = ENTRIES[name].options if name in ENTRIES else ()
    values = {option.argument or option.name: flags.get(option.name) for option in own}
    return {argument: value for argument, value in values.items() if value is not None}


def table(recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return name, parameters, input and options of networks of images, as aligned lines of text.

    Args:
        recipes: the names of the networks, each with the values that a script gives its options.
    """
    rows = [("network", "parameters", "input", "options")]
    for name, recipe in recipes.items():
        entry = ENTRIES[name]
        channels, size = entry.sizes
        own = arguments(name, {**option_defaults(name), **recipe})
        sized = {} if entry.is_segmenter else {"size": size}
        model = build(name, classes=10, channels=channels, **sized, **own)
        count = sum(weight.numel() for weight in model.parameters())
        flags = " ".join(f"--{option.name}" for option in entry.options)
        rows.append((name, f"{count:,} at {channels}×{size}×{size}", entry.takes, flags or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
