"""Steps of the scripts that classify images: load the data, build, train, evaluate, predict."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib import models
from lib.data import augment, datasets, folders, image_files, images, photographs
from lib.data.batches import Phases, Shuffled
from lib.data.images import Examples, ImageData, Split
from lib.data.preprocessing import Preprocessing
from lib.evaluation import views
from lib.models import layers, pretrained, transfer
from lib.models.answers import OfViews
from lib.models.small import FastCNN
from lib.runtime import checkpoint, distributed
from lib.runtime.errors import Interrupted, UserError
from lib.runtime.files import writable_file, write_atomically
from lib.runtime.interrupts import Signals
from lib.training.fit import Batches
from lib.training.objectives import classification
from lib.training.optimisation import unit_lr_multiplier
from lib.training.session import Session
from lib.training.validation import evaluate

# Mean and standard deviation of ImageNet's pixels, with which torchvision's weights were trained; those of
# other photographs are similar.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Published weights are evaluated on the central 224 of 256 pixels, because objects are seldom at the edge.
RESIZE_SHARE = 256 / 224

WHITENING_IMAGES = 1000
WHITENING_PIXELS = 2**24  # in all; a few large images already have enough patches

INPUT_BATCH = 64


class Given(NamedTuple):
    """The weights that `--weights` names, and the preprocessing of their network, if known."""

    weights: dict[str, Tensor]
    preprocessing: Preprocessing | None


def check_input(files: Sequence[str]) -> None:
    """Check, before anything is loaded or logged, that all image files can be read.

    Raises:
        UserError: one cannot; the message names the first.
    """
    for file in files:
        photographs.read(file)


def given_weights(run: Session) -> Given | None:
    """Return the initial weights of a new run, or None for random ones and for runs with a checkpoint.

    Raises:
        UserError: there is no such network or no such weights, or the weights are of another network.
    """
    flags = run.flags
    models.check_name(flags.model)
    if run.saved or flags.weights in (None, pretrained.RANDOM):
        return None
    own = models.is_own(flags.model)
    saved = checkpoint.load(flags.weights, task=run.task) if own or os.path.isfile(flags.weights) else {}
    if "model" in saved:
        name = saved["model"]["name"]
        if name != flags.model:
            raise UserError(f"{flags.weights} holds the weights of {name}, not of {flags.model}")
        # Any: a file may hold anything, and `of` refuses whatever is no preprocessing.
        how: Any = saved.get("preprocessing")
        return Given(saved["state_dict"], Preprocessing.of(how, flags.weights))
    if own:
        return Given(saved["state_dict"], None)
    found = pretrained.load(flags.model, flags.weights)
    return Given(found.model.state_dict(), found.preprocessing)


def load(run: Session) -> ImageData:
    """Load the grey images that the run's flags name, normalised for its network.

    With `--input` no examples are loaded, because the checkpoint has the classes and the preprocessing.
    """
    flags = run.flags
    how = Preprocessing(flags.size, 1, (flags.mean,), (flags.std,))
    check_dataset_flags(flags)
    if flags.input:
        if "preprocessing" in run.saved:
            how = Preprocessing.of(run.saved["preprocessing"], flags.restore_file)
        data = images.without_examples(_classes(run), how)
    elif flags.dataset == datasets.FOLDER:
        data = _load_folder(run, how)
    else:
        data = images.load(
            flags.dataset,
            flags.data_dir,
            size=flags.size,
            limit=flags.limit,
            holdout=flags.holdout,
            options=vars(flags),
        )
    _check_classes(run, data)
    return data.prepared(how.mean, how.std, run.device)


def check_dataset_flags(flags: SimpleNamespace) -> None:
    """Raise a UserError if a flag was given that does not suit the data set."""
    own = () if flags.dataset == datasets.FOLDER else datasets.find(flags.dataset).choices
    for choice in datasets.choices(tuple(datasets.DATASETS)):
        if getattr(flags, choice.name, None) is not None and choice not in own:
            raise UserError(f"--{choice.name} does not go with --dataset {flags.dataset}")
    if flags.dataset == datasets.FOLDER:
        if getattr(flags, "holdout", 0):
            raise UserError("--holdout does not go with --dataset folder: give --valid-fraction")
    elif flags.classes:
        raise UserError("--classes goes with --dataset folder alone")
    elif flags.valid_fraction is not None and hasattr(flags, "holdout"):
        raise UserError(f"--valid-fraction does not go with --dataset {flags.dataset}: give --holdout")


def _load_folder(run: Session, how: Preprocessing) -> ImageData:
    flags = run.flags
    return image_files.load(
        flags.data_dir,
        how,
        only=flags.classes,
        valid_fraction=flags.valid_fraction,
        limit=flags.limit,
        skip_bad=flags.skip_bad,
        workers=flags.workers,
    )


def load_photographs(run: Session, given: Given | None) -> ImageData:
    """Load the colour images that the run's flags name, normalised for its network, like `load`.

    Raises:
        UserError: as `lib.data.cifar.load` and `lib.data.image_files.load` do; the classes differ from the
            checkpoint's; the network takes grey images.
    """
    flags = run.flags
    check_dataset_flags(flags)
    how = _preprocessing(run, given)
    if flags.input:
        data = images.without_examples(_classes(run), how)
    elif how.channels != 3:
        raise UserError(f"{flags.restore_file or flags.weights} takes grey images, and these are coloured")
    elif flags.dataset == datasets.FOLDER:
        data = _load_folder(run, how)
    else:
        data = _load_in_memory(run, how)
    _check_classes(run, data)
    return data.prepared(how.mean, how.std, run.device)


def _preprocessing(run: Session, given: Given | None) -> Preprocessing:
    """Return the preprocessing of the checkpoint, or of the given weights, or the usual one, at `--size`."""
    flags = run.flags
    found = given and given.preprocessing
    if "preprocessing" in run.saved:
        found = Preprocessing.of(run.saved["preprocessing"], flags.restore_file or "the checkpoint")
    usual = 32 if models.is_own(flags.model) else 224
    flags.size = flags.size or (found.size if found else usual)
    if not found:
        found = Preprocessing(usual, 3, MEAN, STD, usual if usual == 32 else round(usual * RESIZE_SHARE))
    if flags.size == found.size:
        return found
    small = flags.size <= images.LARGEST_IN_MEMORY
    resize = flags.size if small else round(flags.size * RESIZE_SHARE)
    return replace(found, size=flags.size, resize=resize)


def _classes(run: Session) -> Sequence[str]:
    if "classes" in run.saved:
        return run.saved["classes"]
    flags = run.flags
    if flags.dataset == datasets.FOLDER:
        return folders.find(flags.data_dir, flags.classes).classes
    entry = datasets.find(flags.dataset)
    return entry.classes(Path(flags.data_dir), entry.options(vars(flags)))


def _load_in_memory(run: Session, how: Preprocessing) -> ImageData:
    flags = run.flags
    entry = datasets.find(flags.dataset)
    splits, names = entry.read(Path(flags.data_dir), entry.options(vars(flags)))
    train, valid, test = images.divide(splits, flags.valid_fraction, flags.limit)
    return ImageData(
        train.resized(how.size),
        valid.resized(how.size),
        test and test.resized(how.size),
        names,
        images.unscaled(how),
    )


def _check_classes(run: Session, data: ImageData) -> None:
    flags = run.flags
    known = run.saved.get("classes")
    goes_on = flags.eval_only or flags.predict_only or flags.resume
    if known and goes_on and list(known) != list(data.classes):
        raise UserError(
            f"the checkpoint tells apart {', '.join(known)}, but the images are of {', '.join(data.classes)}"
        )


def build(run: Session, data: ImageData, given: Given | None = None) -> nn.Module:
    """Build the network for the images and classes of `data`, with the trunk of the given weights, if any.

    Raises:
        UserError: the network lacks an option that was given, or the weights do not fit it.
    """
    flags = run.flags
    own = {}
    for name, (_, networks) in models.options(tuple(models.ENTRIES)).items():
        value = getattr(flags, name, None)
        if value and flags.model not in networks:
            raise UserError(f"--{name} goes with {', '.join(networks)} alone, not with {flags.model}")
        if value:
            own[name] = value
    channels, size = data.preprocessing.channels, data.preprocessing.size
    model = run.build(
        torch.zeros(1, channels, size, size),
        classes=len(data.classes),
        channels=channels,
        size=size,
        **own,
    )
    if given:
        transfer.load_trunk(model, given.weights, flags.weights)
    elif isinstance(model, FastCNN) and not run.saved:
        model.whiten(_some_images(data.train, size, flags.seed))
    return model


def _some_images(split: Examples, size: int, seed: int) -> Tensor:
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))
    count = max(1, min(WHITENING_IMAGES, WHITENING_PIXELS // size**2))
    batches = split.rows(order[:count]).in_order(distributed_over_ranks=False)
    return torch.cat([images for images, _ in batches])


def freeze(run: Session, model: nn.Module, data: ImageData) -> ImageData:
    """With `--freeze`, freeze all of `model` but its head, and return the data to train on.

    If the images never change (no augmentation, no windows, one view), the data are their features, computed
    once.

    Raises:
        UserError: the weights to freeze are random, or `--trunk-lr` is given for them.
    """
    flags = run.flags
    if not flags.freeze:
        return data
    if flags.trunk_lr is not None:
        raise UserError("--freeze trains no trunk: leave out --trunk-lr")
    if flags.weights in (None, pretrained.RANDOM) and not run.saved:
        raise UserError("--freeze needs --weights, or else keeps what is random")
    transfer.freeze(model)
    if flags.augment or flags.windows or flags.test_views > 1 or not transfer.has_features(model):
        return data
    started = time.perf_counter()
    train, valid = (_features(run, model, split) for split in (data.train, data.valid))
    test = data.test and _features(run, model, data.test)
    run.log.event("FEATURES", Size=train.images.shape[1], Seconds=round(time.perf_counter() - started, 1))
    return replace(data, train=train, valid=valid, test=test)


def _features(run: Session, model: nn.Module, split: Examples) -> Split:
    with distributed.autocast(run.device, run.flags.amp):
        return Split(*transfer.features(model, split.in_order(distributed_over_ranks=False)))


def trunk_lr_multiplier(run: Session, model: nn.Module) -> Callable[[str], float]:
    """Return a function from a parameter's name to its learning rate's factor; see `--trunk-lr`."""
    flags = run.flags
    if flags.trunk_lr is None:
        return unit_lr_multiplier
    head, _ = transfer.head_of(model)
    return lambda name: 1.0 if name.startswith(f"{head}.") else flags.trunk_lr / flags.learning_rate


def fit(
    run: Session,
    model: nn.Module,
    data: ImageData,
    lr_multiplier: Callable[[str], float] = unit_lr_multiplier,
) -> None:
    """Train `model` on `data` as the run's flags say; afterwards it has its best weights."""
    flags, how = run.flags, data.preprocessing
    run.fit(
        model,
        classification(flags.label_smoothing),
        _training(run, model, data),
        data.valid.in_order(),
        description={"classes": list(data.classes), "preprocessing": how.as_dict()},
        lr_multiplier=lr_multiplier,
    )


def _training(run: Session, model: nn.Module, data: ImageData) -> Batches:
    """Return the augmented batches: with `--windows` first of windows, then of whole images."""
    flags, how = run.flags, data.preprocessing

    def batches(window: int | None) -> Shuffled:
        return data.train.shuffled(
            flags.augment,
            lambda names: augment.augmentation(names, flags.shift_pixels, how.mean, how.std, window),
            batch_size=flags.batch_size,
            seed=flags.seed,
        )

    found: Shuffled | Phases = batches(None)
    for share, until in reversed(getattr(flags, "windows", None) or ()):
        side = round(share * how.size)
        try:
            layers.table(model, torch.zeros(1, how.channels, side, side, device=run.device))
        except UserError:
            raise UserError(
                f"{flags.model} does not take windows of {side} px of images of {how.size} px: "
                "give other --windows, or none"
            ) from None
        # In floating point 0.29 × 100 is 28.999…, so a hundredth of an epoch is added before truncation.
        # A cast, because `Phases` needs only the length and the epochs of what follows, and has both itself.
        found = Phases(batches(side), int(until * flags.max_epoch + 0.01), cast(Shuffled, found))
    return found


def report(run: Session, model: nn.Module, data: ImageData) -> None:
    """Log loss and accuracy on each split: `[EVAL]`, and `[TEST]` if examples were held out.

    With `--test-views`, the results of averaged views are logged too, as `[VIEWS]`.
    """

    def metrics(name: str, split: Examples, count: int = 1) -> dict[str, float]:
        found = evaluate(OfViews(model, count), classification(), split.in_order(), amp=run.flags.amp)
        return {f"{name}_{key}": found[key] for key in ("loss", "accuracy")}

    run.log.event("EVAL", **metrics("Train", data.train), **metrics("Valid", data.valid))
    unseen = {"Valid": data.valid}
    if data.test:
        run.log.event("TEST", **metrics("Test", data.test))
        unseen["Test"] = data.test
    if run.flags.test_views > 1:
        for name, split in unseen.items():
            run.log.event("VIEWS", Views=run.flags.test_views, **metrics(name, split, run.flags.test_views))


def predict(run: Session, model: nn.Module, data: ImageData) -> None:
    """Write the prediction for each validation image, or each `--input` file, as tab-separated values.

    Raises:
        Interrupted: Ctrl-C; the predictions made by then are written.
    """
    path = writable_file(run.flags.out_file) if run.flags.out_file else None
    names: Sequence[str | int]
    batches: Iterable[tuple[Tensor, Tensor]]
    if run.flags.input:
        names, batches = run.flags.input, _input_batches(run, data)
    else:
        names, batches = range(len(data.valid.labels)), data.valid.in_order(distributed_over_ranks=False)
    with Signals() as signals:
        try:
            predictions = predictions_of(run, model, signals.until_received(batches))
        except UserError:  # no examples at all
            if signals.received:
                raise Interrupted("interrupted before the first answer", signals.received) from None
            raise
        _write_predictions(run, data, list(names[: len(predictions.labels)]), predictions, path)
    if signals.received:
        raise Interrupted(
            f"interrupted: {path or 'standard output'} has the first {len(predictions.labels)} of "
            f"{len(names)} answers",
            signals.received,
        )


def _write_predictions(
    run: Session, data: ImageData, names: Sequence, predictions: views.Predictions, path: Path | None
) -> None:
    labelled = not run.flags.input
    header = ["image", *(["label"] if labelled else []), "prediction", "probability", *data.classes]
    lines = ["\t".join(header)]
    answers = zip(names, predictions.labels, predictions.classes, predictions.probabilities, strict=True)
    for name, label, answer, probabilities in answers:
        truth = [data.classes[label]] if labelled else []
        chosen = [data.classes[answer], f"{probabilities[answer]:.6f}"]
        # A file name may contain tabs and line breaks, which would end its cell or its line.
        cells = [re.sub(r"[\t\n\r]", " ", str(name)), *truth, *chosen]
        lines.append("\t".join([*cells, *(f"{p:.6f}" for p in probabilities)]))
    if not distributed.is_main():
        return
    if path:
        write_atomically(path, ("\n".join(lines) + "\n").encode())
        run.log.event("PREDICT", Examples=len(predictions.labels), file=path)
    else:
        sys.stdout.write("\n".join(lines) + "\n")


def _input_batches(run: Session, data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the `--input` files, normalised, with zeros in place of labels."""
    how, files = data.preprocessing, run.flags.input
    with (
        tqdm(total=len(files), desc="predicting", unit=" images", leave=False, disable=None) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for first in range(0, len(files), INPUT_BATCH):
            pixels = torch.stack(list(pool.map(how.read, files[first : first + INPUT_BATCH])))
            pixels = 1 - pixels if run.flags.invert else pixels
            batch = Split(pixels, torch.zeros(len(pixels), dtype=torch.long)).prepared(how, run.device)
            yield batch.images, batch.labels
            bar.update(len(pixels))


def predictions_of(
    run: Session, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> views.Predictions:
    """Return the predictions of `model` for all examples of `batches`, which are the same on every rank."""
    with distributed.autocast(run.device, run.flags.amp):
        return views.predict(OfViews(model, run.flags.test_views), batches)


def list_models(recipes: Mapping[str, Mapping[str, Any]], also: str = "") -> None:
    """Print a table of the networks that have a recipe, then the line `also`, if any."""
    sys.stdout.write("\n".join([*models.table(recipes), *([also] if also else [])]) + "\n")
