"""Figures of `--eval-only` and predictions of networks that segment images."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.data import fitting, image_inputs, photographs
from lib.data.masks import MaskedData
from lib.data.preprocessing import Preprocessing
from lib.figures import classification, style
from lib.figures import segmentation as pictures
from lib.models import layers
from lib.models.segmentation import enlarged
from lib.runtime import distributed
from lib.runtime.errors import Interrupted, UserError
from lib.runtime.files import replaced, writable_file, writable_folder, write_atomically
from lib.runtime.interrupts import Signals
from lib.runtime.settings import Settings
from lib.runtime.spelling import cell
from lib.tasks.segmentation import report
from lib.training.run import TrainingRun
from lib.training.segmentation import answer

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ViewSettings(Settings):
    """The flags of `--eval-only`."""

    out_dir: str
    show: bool
    pictures: int
    test_views: int


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """The flags of `--predict-only`."""

    input: list[str] | None
    out_dir: str
    out_file: str | None
    test_views: int


def look_inside(run: TrainingRun, model: nn.Module, data: MaskedData, settings: ViewSettings) -> None:
    """Log the metrics, and draw the confusion matrix and some images with truth, prediction and error.

    The images are those at equal steps through the test split, or the validation split if there is none.

    Raises:
        UserError: the folder for pictures cannot be written.
    """
    folder = writable_folder(settings.out_dir)
    scores = report(run, model, data)
    if not distributed.is_main():
        return
    split = data.test or data.valid
    count = min(settings.pictures, len(split))
    rows = []
    for number in range(count):
        image, mask = split[number * len(split) // count]
        logits = _logits(run, model, split.normalised(image[None].float() / 255), settings.test_views)
        rows.append(
            pictures.Row(
                split.name(number * len(split) // count),
                image.permute(1, 2, 0).numpy(),
                mask.numpy(),
                _labels(logits, mask.shape),
            )
        )
    confusion = classification.confusion_matrix(scores.confusion.numpy(), data.classes, unit="pixels")
    for what, figure in (("segments", pictures.sheet(rows, data.classes)), ("confusion", confusion)):
        path = folder / run.picture_name(what)
        run.log.event("FIGURE", file=style.save(figure, path, show=settings.show))


def _logits(run: TrainingRun, model: nn.Module, images: Tensor, views: int) -> Tensor:
    with layers.evaluating(model), torch.inference_mode(), distributed.autocast(run.device, run.settings.amp):
        return answer(model, images, views)


def _labels(logits: Tensor, size: Sequence[int]) -> np.ndarray:
    """Return the most probable label of each pixel of an image of `size` (H, W), uint8."""
    return enlarged(logits, size).argmax(1)[0].to(torch.uint8).cpu().numpy()


def predict(run: TrainingRun, model: nn.Module, data: MaskedData, settings: PredictionSettings) -> None:
    """Write a mask, a picture and a line of numbers for each image of `--input`, or of the validation split.

    `NAME-mask.png` has the label of each pixel of the image in its own size, in the colours of the classes;
    `NAME-overlay.png` shows these over the image, with a legend below. The lines, tab-separated values, have
    the share of the pixels of each class.

    Raises:
        UserError: an image cannot be read, or the folder cannot be written.
        Interrupted: Ctrl-C; the predictions made by then are written.
    """
    path = writable_file(settings.out_file) if settings.out_file else None
    folder = writable_folder(settings.out_dir)
    classes, how = data.classes, data.preprocessing
    lines = ["\t".join(["image", *map(cell, classes)])]
    count = len(settings.input) if settings.input else len(data.valid)
    if not distributed.is_main():
        return
    with Signals() as signals:
        images = tqdm(_images(settings, data), "segmenting", count, unit=" images", leave=False, disable=None)
        for name, given, image in signals.until_received(images):
            pixels = fitting.fitted(image, how, fitting.AS_TRAINED, given).pixels[None].to(run.device)
            logits = _logits(run, model, _normalised(pixels, how), settings.test_views)
            mask = _labels(logits, (image.height, image.width))
            _save(folder, name, np.asarray(image), mask, classes)
            shares = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
            lines.append("\t".join([cell(given), *(f"{share:.6f}" for share in shares)]))
    text = "\n".join(lines) + "\n"
    if path:
        write_atomically(path, text.encode())
    else:
        sys.stdout.write(text)
    run.log.event("PREDICT", Examples=len(lines) - 1, folder=folder, file=path or "-")
    if signals.received:
        raise Interrupted(
            f"interrupted: {folder} has the first {len(lines) - 1} of {count} answers", signals.received
        )


def _normalised(pixels: Tensor, how: Preprocessing) -> Tensor:
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    return (pixels - mean) / std


def _images(settings: PredictionSettings, data: MaskedData) -> Iterator[tuple[str, str, "Image"]]:
    """Yield for each image its name in file names, its name as it was given, and the image in RGB."""
    from PIL import Image

    if settings.input:
        for name, given in zip(image_inputs.names(settings.input), settings.input, strict=True):
            yield name, given, photographs.read(given)
    else:
        for row in range(len(data.valid)):
            name = data.valid.name(row)
            yield name, name, Image.fromarray(data.valid[row][0].permute(1, 2, 0).numpy())


def _save(folder: Path, name: str, pixels: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> None:
    from PIL import Image

    labels = Image.fromarray(mask)
    labels.putpalette(pictures.palette(len(classes)).tobytes())
    overlay = Image.fromarray(pictures.overlay_with_legend(pixels, mask, classes))
    for kind, image in (("mask", labels), ("overlay", overlay)):
        with replaced(folder / f"{name}-{kind}.png") as file:
            image.save(file, "PNG")


def check_input(files: Sequence[str]) -> None:
    """Check, before anything is loaded or logged, that all image files can be read.

    Raises:
        UserError: one cannot; the message names the first.
    """
    for file in files:
        if os.path.isdir(file):
            raise UserError(f"{file} is a folder: name the images in it, such as {file}/*.jpg")
        photographs.read(file)
