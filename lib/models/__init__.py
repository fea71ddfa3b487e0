"""The networks, made by name: `build('lenet5', classes=10, channels=1, size=28)`."""

from torch import nn

from lib.errors import UserError
from lib.models import digits, recurrent

_MAKERS = {
    "mnist-classifier": digits.MnistClassifier,
    "lenet5": digits.LeNet5,
    "deep-cnn": digits.DeepCNN,
    "lstm": recurrent.SentimentClassifier,
    "plain": recurrent.PlainClassifier,
    "ensemble": lambda members, member: recurrent.Ensemble(
        build(member["name"], **member["config"]) for _ in range(members)
    ),
}


def build(name: str, **config) -> nn.Module:
    """Return a new network; `config` holds plain values, as a checkpoint keeps them.

    Raises:
        UserError: no network of this name, or one that cannot be made so.
    """
    if name not in _MAKERS:
        raise UserError(f"there is no model {name!r}; there are {', '.join(_MAKERS)}")
    try:
        return _MAKERS[name](**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be made from {config}: {error}") from None
