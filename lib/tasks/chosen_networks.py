"""The networks that a script explains: torchvision's, the user's own, or checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lib import models
from lib.data import class_names
from lib.models import explained_autoencoder, own_network, pretrained
from lib.models.network import Network, load_checkpoint, load_pretrained
from lib.models.own_network import OwnNetwork
from lib.runtime import distributed, threads
from lib.runtime.errors import OtherTaskError, UserError, warn
from lib.runtime.memory import keep_freed_memory
from lib.runtime.settings import Settings


@dataclass(frozen=True)
class NetworkChoice(Settings):
    """The networks to explain, and where they compute."""

    ptm: Sequence[str] | None
    network: str | None
    weights: Sequence[str] | None
    classes: str | None
    restore_file: Sequence[str] | None
    device: str
    threads: int | None
    seed: int


def load(
    choice: NetworkChoice,
    own: OwnNetwork,
    *,
    autoencoder: Callable[[str, torch.device], Network] | None = None,
    lists_layers: bool = False,
) -> list[Network]:
    """Return the networks, and choose the number of threads by their size.

    Args:
        choice: which networks.
        own: description of the user's own network, for `--network`.
        autoencoder: how the checkpoint of an autoencoder is loaded; None if checkpoints hold classifiers.
        lists_layers: whether the weights do not matter, so that they need not be there.
    """
    device = distributed.pick_device(choice.device)
    distributed.use_exact_float32()
    if device.type == "cpu":
        keep_freed_memory()
    if choice.ptm:
        networks = [
            load_pretrained(name, pretrained.RANDOM, device)
            if lists_layers
            else _with_names(load_pretrained(name, weights, device, seed=choice.seed), choice.classes)
            for name, weights in zip(choice.ptm, _weights(choice), strict=True)
        ]
    elif choice.network:
        networks = [own_network.load(replace(own, weights=None) if lists_layers else own, device)]
    else:
        networks = _by_age([_of_checkpoint(file, device, autoencoder) for file in choice.restore_file or ()])
    small = all(models.is_small(each.name) for each in networks)
    threads.use(choice.threads or threads.suitable(small))
    return networks


def _weights(choice: NetworkChoice) -> Sequence[str | None]:
    """Return the weights of each network of `--ptm`."""
    count, given = len(choice.ptm or ()), choice.weights or ()
    return given if len(given) == count else [*(given or (None,))] * count


def _of_checkpoint(
    file: str, device: torch.device, autoencoder: Callable[[str, torch.device], Network] | None
) -> Network:
    if autoencoder:
        return autoencoder(file, device)
    try:
        return load_checkpoint(file, device)
    except OtherTaskError as error:
        if error.content["task"] != explained_autoencoder.TASK:
            raise
        raise UserError(
            f"{file} holds an autoencoder: say what to explain of it, --unit N or --area Y0,X0,Y1,X1"
        ) from None


def _with_names(network: Network, classes: str | None) -> Network:
    """Return a network of torchvision's with the class names that the user gives, if any."""
    if classes:
        return own_network.named(network, class_names.read(classes), len(network.classes))
    if network.classes == tuple(map(str, range(len(network.classes)))):
        warn(f"the {len(network.classes)} classes of {network.name} have no names: --classes FILE gives them")
    return network


def _by_age(networks: list[Network]) -> list[Network]:
    """Return checkpoints of one network sorted by epoch (file names seldom sort so); others unchanged."""
    aged = [(each.epoch, each) for each in networks if each.epoch is not None]
    if len({each.name for each in networks}) > 1 or len(aged) < len(networks):
        return networks
    return [each for _, each in sorted(aged, key=lambda pair: pair[0])]
