"""Steps of run-segmentation.py: load images and masks, build the network, train it, report how good it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import models
from lib.data import masks
from lib.data.joint_augment import JointAugmentation
from lib.data.masks import MaskBatches, MaskedData, MaskedSplit, MasksInOrder, Reading
from lib.data.preprocessing import Preprocessing
from lib.data.segmentation_sets import FOLDER, MASKED_SETS
from lib.evaluation.segmentation import Scores, commonest_labels, confusion_of, resized, table
from lib.models import pretrained
from lib.models.fcn import FCN
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.training.run import TrainingRun
from lib.training.segmentation import by_miou, segmentation
from lib.training.validation import Metrics, evaluate

# Of ImageNet's pixels, with which torchvision's encoders were trained; other photographs' are similar.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GRAIN = 16  # sides of windows are multiples of it: the trunk's maps then have no half cells
_LEAST_WINDOW = 64


@dataclass(frozen=True)
class DataSettings(Settings):
    """The flags that choose the images and masks."""

    dataset: str
    data_dir: str
    classes: tuple[str, ...]
    ignore_index: int | None
    valid_fraction: float | None
    limit: int | None
    size: int | None
    input: list[str] | None


@dataclass(frozen=True)
class LearningSettings(Settings):
    """The flags that say how a segmentation network learns, besides those of `fit`."""

    seed: int
    batch_size: int
    class_weights: str
    iou_loss: float
    augment: tuple[str, ...]
    window: float
    test_views: int


def load(run: TrainingRun, settings: DataSettings) -> MaskedData:
    """Load the images and masks that the flags name; with `--input` there are none, only classes.

    Raises:
        UserError: files are missing or do not fit each other, or the classes differ from the checkpoint's.
    """
    entry = MASKED_SETS[settings.dataset]
    if settings.classes and entry.name != FOLDER:
        raise UserError("--classes goes with --dataset folder alone")
    ignore = entry.ignore if settings.ignore_index is None else settings.ignore_index
    if settings.input:
        nothing = MaskedSplit([], (), ())
        classes = tuple(map(str, run.saved.get("classes", ())))
        return MaskedData(nothing, nothing, None, classes, ignore, _preprocessing(run))
    reading = Reading(settings.size, ignore, settings.classes or entry.classes)
    found = entry.read(Path(settings.data_dir), reading)
    train, valid, test = masks.divide(found.splits, settings.valid_fraction, settings.limit)
    if settings.size is None:
        run.fill_in("size", max(max(train[0][1].shape), max(train.usual_size)))
    _check_classes(run, found.classes)
    how = _preprocessing(run)
    train, valid = (replace(split, preprocessing=how, device=run.device) for split in (train, valid))
    test = test and replace(test, preprocessing=how, device=run.device)
    return MaskedData(train, valid, test, found.classes, ignore, how)


def _preprocessing(run: TrainingRun) -> Preprocessing:
    if "preprocessing" in run.saved:
        return Preprocessing.of(run.saved["preprocessing"], run.source)
    return Preprocessing(run.flags["size"], 3, MEAN, STD, native=True)


def _check_classes(run: TrainingRun, classes: tuple[str, ...]) -> None:
    known = run.saved.get("classes")
    if known and run.goes_on and list(known) != list(classes):
        raise UserError(
            f"the checkpoint tells {len(known)} classes apart ({', '.join(known)[:120]}), and the masks have "
            f"others: {', '.join(classes)[:120]}"
        )


def build(run: TrainingRun, data: MaskedData, weights: str | None) -> nn.Module:
    """Build the network for the classes of `data`.

    Args:
        run: the run.
        data: the images and masks.
        weights: initial weights of the encoder: torchvision's name, a file, or None for random ones.

    Raises:
        UserError: there are no such weights, or the network has no encoder.
    """
    name = run.settings.model
    if not (name in models.ENTRIES and models.ENTRIES[name].is_segmenter):
        of = [each for each, entry in models.ENTRIES.items() if entry.is_segmenter]
        raise UserError(f"{name} segments no images: choose --model from {', '.join(of)}")
    size = data.train.usual_size if len(data.train) else (data.preprocessing.size,) * 2
    if not data.classes:
        raise UserError(f"{run.source} does not name its classes")
    model = run.build(torch.zeros(1, 3, *size), classes=len(data.classes), channels=3)
    if weights in (None, pretrained.RANDOM) or run.saved:
        return model
    if not isinstance(model, FCN):
        raise UserError(f"--weights are those of an encoder, which {name} does not have: give --model fcn8")
    encoder = run.flags["encoder"]
    missing = model.load_encoder(pretrained.load(encoder, weights).model.state_dict())
    if missing:
        raise UserError(f"{weights} lacks the layer {missing[0]} of the encoder {encoder}")
    return model


def fit(run: TrainingRun, model: nn.Module, data: MaskedData, settings: LearningSettings) -> None:
    """Train `model` on `data`; afterwards it has its best weights."""
    counts = data.train.frequencies(len(data.classes), data.ignore)
    weights = masks.class_weights(settings.class_weights, counts)
    run.fit(
        model,
        segmentation(
            data.ignore,
            lambda found, true: confusion_of(found, true, len(data.classes), data.ignore),
            weights,
            iou_weight=settings.iou_loss,
            views=settings.test_views,
        ),
        _training(data, settings),
        MasksInOrder(data.valid),
        description={
            "classes": list(data.classes),
            "preprocessing": data.preprocessing.as_dict(),
            "ignore": data.ignore,
        },
        score=by_miou,
        summarise=metrics_of,
    )


def _training(data: MaskedData, settings: LearningSettings) -> MaskBatches:
    height, width = (
        max(_LEAST_WINDOW, _GRAIN * round(settings.window * side / _GRAIN)) for side in data.train.usual_size
    )
    augmentation = JointAugmentation(settings.augment, (height, width), data.ignore, data.preprocessing.mean)
    return MaskBatches(data.train, augmentation, batch_size=settings.batch_size, seed=settings.seed)


def metrics_of(sums: Mapping[str, Tensor]) -> Metrics:
    """Return the metrics of the sums of `lib.training.segmentation.segmentation` over a split."""
    loss = float(sums["loss"]) / max(float(sums["count"]), 1.0)
    return {"loss": loss, **Scores(sums["confusion"].cpu()).as_dict()}


def scores_of(
    run: TrainingRun, model: nn.Module, data: MaskedData, split: MaskedSplit
) -> tuple[float, Scores]:
    """Return the mean loss of a pixel and the scores of `model` on a split, over all ranks."""
    kept: list[Tensor] = []

    def summarise(sums: dict[str, Tensor]) -> Metrics:
        kept.append(sums["confusion"].cpu())
        return metrics_of(sums)

    objective = segmentation(
        data.ignore,
        lambda found, true: confusion_of(found, true, len(data.classes), data.ignore),
        views=run.flags["test_views"],
    )
    found = evaluate(model, objective, MasksInOrder(split), amp=run.settings.amp, summarise=summarise)
    return found["loss"], Scores(kept[0])


def report(run: TrainingRun, model: nn.Module, data: MaskedData) -> Scores:
    """Log the metrics on the validation split, `[EVAL]`, and once on the test split, `[TEST]`.

    Beside them stands `[MAJORITY]`, the metrics of the answer that gives each place of the image its
    commonest label in training, and a table of the classes. Returned are the scores of the last split.
    """
    of_train = (data.train[row][1] for row in range(len(data.train)))
    answer = commonest_labels(of_train, len(data.classes), data.ignore, data.train.usual_size)
    for tag, name, split in (("EVAL", "Valid", data.valid), ("TEST", "Test", data.test)):
        if split is None:
            continue
        loss, scores = scores_of(run, model, data, split)
        named = {f"{name}_{key}": value for key, value in {"loss": loss, **scores.as_dict()}.items()}
        run.log.event(tag, **named, Images=len(split))
        blind = _majority(data, split, answer).as_dict()
        run.log.event("MAJORITY", **{f"{name}_{key}": value for key, value in blind.items()})
        for line in table(scores, data.classes):
            run.log.text("CLASSES", line)
    return scores


def _majority(data: MaskedData, split: MaskedSplit, answer: Tensor) -> Scores:
    """Return the scores of one answer (H, W) for all images of a split; every rank counts all of them."""
    counted = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
    for row in range(len(split)):
        mask = split[row][1]
        counted += confusion_of(resized(answer, mask.shape), mask, len(data.classes), data.ignore)
    return Scores(counted)
