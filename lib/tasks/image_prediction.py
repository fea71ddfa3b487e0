"""Predictions for images: of the validation split, or of the user's own image files."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.data import photographs
from lib.data.images import ImageData, Split
from lib.data.preprocessing import warn_of_negatives
from lib.evaluation import answers
from lib.models.averaging import AveragedViews
from lib.runtime import distributed
from lib.runtime.errors import Interrupted, UserError
from lib.runtime.files import writable_file, write_atomically
from lib.runtime.interrupts import Signals
from lib.runtime.settings import Settings
from lib.runtime.spelling import cell
from lib.training.run import TrainingRun

INPUT_BATCH = 64


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """The flags of `--predict-only`."""

    input: list[str] | None
    invert: bool
    out_file: str | None
    test_views: int


def check_input(files: Sequence[str]) -> None:
    """Check, before anything is loaded or logged, that all image files can be read.

    Raises:
        UserError: one cannot; the message names the first.
    """
    for file in files:
        photographs.read(file)


def predict(run: TrainingRun, model: nn.Module, data: ImageData, settings: PredictionSettings) -> None:
    """Write the prediction for each validation image, or each `--input` file, as tab-separated values.

    Raises:
        Interrupted: Ctrl-C; the predictions made by then are written.
    """
    path = writable_file(settings.out_file) if settings.out_file else None
    names: Sequence[str | int]
    batches: Iterable[tuple[Tensor, Tensor]]
    if settings.input:
        names, batches = settings.input, _input_batches(run, data, settings)
    else:
        names = data.valid.names or range(len(data.valid.labels))
        batches = data.valid.in_order(distributed_over_ranks=False)
    with Signals() as signals:
        try:
            predictions = predictions_of(run, model, signals.until_received(batches), settings.test_views)
        except UserError:  # no examples at all
            if signals.received:
                raise Interrupted("interrupted before the first answer", signals.received) from None
            raise
        _write(
            run,
            data,
            list(names[: len(predictions.labels)]),
            predictions,
            path,
            views=settings.test_views,
            labelled=not settings.input,
        )
    if signals.received:
        raise Interrupted(
            f"interrupted: {path or 'standard output'} has the first {len(predictions.labels)} of "
            f"{len(names)} answers",
            signals.received,
        )


def _write(
    run: TrainingRun,
    data: ImageData,
    names: Sequence,
    predictions: answers.Predictions,
    path: Path | None,
    *,
    views: int,
    labelled: bool,
) -> None:
    classes = list(map(cell, data.classes))
    header = ["image", *(["label"] if labelled else []), "prediction", "probability", *classes]
    lines = ["\t".join(header)]
    rows = zip(names, predictions.labels, predictions.classes, predictions.probabilities, strict=True)
    for name, label, answer, probabilities in rows:
        truth = [classes[label]] if labelled else []
        chosen = [classes[answer], f"{probabilities[answer]:.6f}"]
        # A file name may contain tabs and line breaks, which would end its cell or its line.
        cells = [cell(name), *truth, *chosen]
        lines.append("\t".join([*cells, *(f"{p:.6f}" for p in probabilities)]))
    if not distributed.is_main():
        return
    if path:
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    # Probabilities are means over views, as in the titles of explanations; see `Network.probabilities`.
    told = {"Examples": len(predictions.labels), "Size": data.preprocessing.size, "Views": views}
    run.log.event("PREDICT", **told, file=path or "standard output")


def _input_batches(
    run: TrainingRun, data: ImageData, settings: PredictionSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the `--input` files, normalised, with zeros in place of labels."""
    how, files = data.preprocessing, settings.input or ()
    with (
        tqdm(total=len(files), desc="predicting", unit=" images", leave=False, disable=None) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        negatives: list[str] = []
        for first in range(0, len(files), INPUT_BATCH):
            names = files[first : first + INPUT_BATCH]
            pixels = torch.stack(list(pool.map(how.read, names)))
            pixels = 1 - pixels if settings.invert else pixels
            negatives += [
                name for name, image in zip(names, pixels, strict=True) if how.looks_negative(image)
            ]
            batch = Split(pixels, torch.zeros(len(pixels), dtype=torch.long)).prepared(how, run.device)
            yield batch.images, batch.labels
            bar.update(len(pixels))
    warn_of_negatives(negatives, inverted=settings.invert)


def predictions_of(
    run: TrainingRun, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], test_views: int
) -> answers.Predictions:
    """Return the predictions of `model` for all examples of `batches`, which are the same on every rank."""
    with distributed.autocast(run.device, run.settings.amp):
        return answers.predict(AveragedViews(model, test_views), batches)
