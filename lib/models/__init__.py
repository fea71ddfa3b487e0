"""The networks, made by name: `build('lenet5', classes=10, channels=1, size=28)`."""

from functools import partial

from torch import nn

from lib.models import digits, pretrained, recurrent, rows, small, transfer
from lib.runtime.errors import UserError

_MAKERS = {
    "mnist-classifier": digits.MnistClassifier,
    "lenet5": digits.LeNet5,
    "deep-cnn": digits.DeepCNN,
    "simple-cnn": small.SimpleCNN,
    "fast-cnn": small.FastCNN,
    "row-rnn": partial(rows.RowClassifier, "rnn"),
    "row-lstm": partial(rows.RowClassifier, "lstm"),
    "row-gru": partial(rows.RowClassifier, "gru"),
    "lstm": recurrent.SentimentClassifier,
    "plain": recurrent.PlainClassifier,
    "ensemble": lambda members, member: recurrent.Ensemble(
        build(member["name"], **member["config"]) for _ in range(members)
    ),
}

# A second thread gains these nothing: 128 images take 5.7 ms on one thread and 6.8 ms on two, where lenet5
# takes 29 and 16 ms. Where another process takes its core, every layer waits for it: beside five busy
# processes on two cores, mnist-classifier did 855 updates in 603 s on two threads, and 3,835 in 50 s on one.
_SMALL = ("mnist-classifier", "lstm", "plain", "ensemble")


def is_small(name: str) -> bool:
    """Return whether one thread computes this network as fast as several."""
    return name in _SMALL


def build(name: str, **config) -> nn.Module:
    """Return a new network, one of this project's or of torchvision's classifiers.

    Args:
        name: which.
        config: plain values, as a checkpoint keeps them.

    Raises:
        UserError: no network of this name, or one that cannot be made so.
    """
    check_name(name)
    make = _MAKERS.get(name) or partial(transfer.build, name)
    try:
        return make(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be made from {config}: {error}") from None


def is_own(name: str) -> bool:
    """Return whether `name` is one of this project's networks, and not of torchvision's."""
    return name in _MAKERS


def check_name(name: str) -> None:
    """Raise a UserError that suggests the nearest names, if there is no network of this name."""
    if not is_own(name):
        pretrained.check_name(name, also=_MAKERS)
