"""Steps of the scripts that classify images: build the network, train it, report how good it is."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib import models
from lib.data import augment
from lib.data.batches import ScheduledBatches, Shuffled
from lib.data.images import Examples, ImageData, Split
from lib.data.preprocessing import Preprocessing
from lib.models import layers, pretrained, transfer
from lib.models.averaging import AveragedViews
from lib.models.small import FastCNN
from lib.runtime import checkpoint, distributed
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.training.fit import Batches
from lib.training.objectives import classification
from lib.training.optimisation import unit_lr_multiplier
from lib.training.run import TrainingRun
from lib.training.validation import evaluate

WHITENING_IMAGES = 1000
WHITENING_PIXELS = 2**24  # in all; a few large images already have enough patches


@dataclass(frozen=True)
class LearningSettings(Settings):
    """The flags that say how a classifier of images learns, besides those of `fit`."""

    seed: int
    batch_size: int
    max_epoch: int
    learning_rate: float
    label_smoothing: float
    augment: tuple[str, ...]
    shift_pixels: int
    test_views: int
    windows: tuple[tuple[float, float], ...] | None = None
    weights: str | None = None
    freeze: bool = False
    trunk_lr: float | None = None


class InitialWeights(NamedTuple):
    """The weights that `--weights` names, and the preprocessing of their network, if known."""

    weights: dict[str, Tensor]
    preprocessing: Preprocessing | None


def initial_weights(run: TrainingRun, weights: str | None) -> InitialWeights | None:
    """Return the initial weights of a new run, or None for random ones and for runs with a checkpoint.

    Args:
        run: the run.
        weights: value of `--weights`.

    Raises:
        UserError: there is no such network or no such weights, or the weights are of another network.
    """
    model = run.settings.model
    models.check_name(model)
    if run.saved or weights in (None, pretrained.RANDOM):
        return None
    is_own = models.is_own(model)
    saved = checkpoint.load(weights, task=run.task) if is_own or os.path.isfile(weights) else {}
    if "model" in saved:
        if saved["model"]["name"] != model:
            raise UserError(f"{weights} holds the weights of {saved['model']['name']}, not of {model}")
        # Any: a file may hold anything, and `of` refuses whatever is no preprocessing.
        how: Any = saved.get("preprocessing")
        return InitialWeights(saved["state_dict"], Preprocessing.of(how, weights))
    if is_own:
        return InitialWeights(saved["state_dict"], None)
    found = pretrained.load(model, weights)
    return InitialWeights(found.model.state_dict(), found.preprocessing)


def build(run: TrainingRun, data: ImageData, initial: InitialWeights | None = None) -> nn.Module:
    """Build the network for the images and classes of `data`, with the trunk of the initial weights, if any.

    Raises:
        UserError: the weights do not fit the network.
    """
    channels, size = data.preprocessing.channels, data.preprocessing.size
    model = run.build(
        torch.zeros(1, channels, size, size),
        classes=len(data.classes),
        channels=channels,
        size=size,
    )
    if initial:
        transfer.load_trunk(model, initial.weights, run.source)
    elif isinstance(model, FastCNN) and not run.saved:
        model.whiten(_some_images(data.train, size, run.settings.seed))
    return model


def _some_images(split: Examples, size: int, seed: int) -> Tensor:
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))
    count = max(1, min(WHITENING_IMAGES, WHITENING_PIXELS // size**2))
    batches = split.rows(order[:count]).in_order(distributed_over_ranks=False)
    return torch.cat([images for images, _ in batches])


def freeze(run: TrainingRun, model: nn.Module, data: ImageData, settings: LearningSettings) -> ImageData:
    """With `--freeze`, freeze all of `model` but its head, and return the data to train on.

    If the images never change (no augmentation, no windows, one view), the data are their features, computed
    once.

    Raises:
        UserError: the weights to freeze are random, or `--trunk-lr` is given for them.
    """
    if not settings.freeze:
        return data
    if settings.trunk_lr is not None:
        raise UserError("--freeze trains no trunk: leave out --trunk-lr")
    if settings.weights in (None, pretrained.RANDOM) and not run.saved:
        raise UserError("--freeze needs --weights, or else keeps what is random")
    transfer.freeze(model)
    if settings.augment or settings.windows or settings.test_views > 1 or not transfer.has_features(model):
        return data
    started = time.perf_counter()
    train, valid = (_features(run, model, split) for split in (data.train, data.valid))
    test = data.test and _features(run, model, data.test)
    run.log.event("FEATURES", Size=train.images.shape[1], Seconds=round(time.perf_counter() - started, 1))
    return replace(data, train=train, valid=valid, test=test)


def _features(run: TrainingRun, model: nn.Module, split: Examples) -> Split:
    with distributed.autocast(run.device, run.settings.amp):
        return Split(*transfer.features(model, split.in_order(distributed_over_ranks=False)))


def fit(run: TrainingRun, model: nn.Module, data: ImageData, settings: LearningSettings) -> None:
    """Train `model` on `data`; afterwards it has its best weights."""
    run.fit(
        model,
        classification(settings.label_smoothing),
        _training(run, model, data, settings),
        data.valid.in_order(),
        description={"classes": list(data.classes), "preprocessing": data.preprocessing.as_dict()},
        lr_multiplier=lr_multiplier_of(model, settings),
    )


def lr_multiplier_of(model: nn.Module, settings: LearningSettings) -> Callable[[str], float]:
    """Return a function from a parameter's name to its learning rate's factor; see `--trunk-lr`."""
    if settings.trunk_lr is None:
        return unit_lr_multiplier
    head, _ = transfer.head_of(model)
    factor = settings.trunk_lr / settings.learning_rate
    return lambda name: 1.0 if name.startswith(f"{head}.") else factor


def _training(run: TrainingRun, model: nn.Module, data: ImageData, settings: LearningSettings) -> Batches:
    """Return the augmented batches: with `--windows` first of windows, then of whole images."""
    how = data.preprocessing

    def batches(window: int | None) -> Shuffled:
        return data.train.shuffled(
            settings.augment,
            lambda names: augment.augmentation(names, settings.shift_pixels, how.mean, how.std, window),
            batch_size=settings.batch_size,
            seed=settings.seed,
        )

    found: Shuffled | ScheduledBatches = batches(None)
    for share, until in reversed(settings.windows or ()):
        side = round(share * how.size)
        try:
            layers.table(model, torch.zeros(1, how.channels, side, side, device=run.device))
        except UserError:
            raise UserError(
                f"{run.settings.model} does not take windows of {side} px of images of {how.size} px: "
                "give other --windows, or none"
            ) from None
        # In floating point 0.29 × 100 is 28.999…, so a hundredth of an epoch is added before truncation.
        found = ScheduledBatches(batches(side), int(until * settings.max_epoch + 0.01), found)
    return found


def report(run: TrainingRun, model: nn.Module, data: ImageData, test_views: int) -> None:
    """Log loss and accuracy on each split: `[EVAL]`, and `[TEST]` if examples were held out.

    With `--test-views`, the results of averaged views are logged too, as `[VIEWS]`.
    """

    def metrics(name: str, split: Examples, count: int = 1) -> dict[str, float]:
        found = evaluate(
            AveragedViews(model, count), classification(), split.in_order(), amp=run.settings.amp
        )
        return {f"{name}_{key}": found[key] for key in ("loss", "accuracy")}

    # A network of the user's own may be shown examples that are all there to validate on.
    trained = metrics("Train", data.train) if len(data.train.labels) else {}
    run.log.event("EVAL", **trained, **metrics("Valid", data.valid))
    unseen = {"Valid": data.valid}
    if data.test:
        run.log.event("TEST", **metrics("Test", data.test))
        unseen["Test"] = data.test
    if test_views > 1:
        for name, split in unseen.items():
            run.log.event("VIEWS", Views=test_views, **metrics(name, split, test_views))


def list_models(recipes: Mapping[str, Mapping[str, Any]], also: str = "") -> None:
    """Print a table of the networks that have a recipe, then the line `also`, if any."""
    sys.stdout.write("\n".join([*models.table(recipes), *([also] if also else [])]) + "\n")
