"""Figures of `--eval-only` for image classifiers: mistakes, features of layers, filters, activations."""

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib.data.images import Examples, ImageData, resize
from lib.evaluation import answers
from lib.evaluation.activation_statistics import activation_statistics, activation_table
from lib.evaluation.features import layer_features
from lib.evaluation.projector import write_projector
from lib.figures import classification as pictures
from lib.figures import features as feature_pictures
from lib.figures import filters as filter_pictures
from lib.models import layers
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.tasks import inspection
from lib.tasks.image_classification import report
from lib.tasks.image_prediction import predictions_of
from lib.tasks.inspection import ViewSettings
from lib.training.run import TrainingRun

# Largest side in pixels of an image drawn at its point, so that a thousand of them fit on a sheet.
THUMBNAIL_SIDE = 64
# Of a network that does not say which of its layers to embed, at most this many are.
MOST_STAGES = 6
# For figures with photographs or many colours, which a palette would degrade.
ALL_COLOURS = None


def look_inside(run: TrainingRun, model: nn.Module, data: ImageData, settings: ViewSettings) -> None:
    """Log the metrics and draw what the network learnt.

    Logged: a table of classes, and one of the convolutions' activations. Drawn: the confusion matrix, the
    worst mistakes, the first filters, the activations, the layers' features, and with `--thumbnails` the
    images at their points.

    Raises:
        UserError: no such layer, too few samples for the perplexity, thumbnails in 3 dimensions, or a folder
            that cannot be written; all are checked before anything is computed.
    """
    rows = inspection.sample(settings, data.valid.labels.cpu()).to(data.valid.labels.device)
    layer_names = list(layers.resolve(model, settings.layers or _stages(model, data)))
    if settings.thumbnails and settings.dims != 2:
        raise UserError("--thumbnails goes with --dims 2 alone")
    inspection.make_folders(settings)
    report(run, model, data, settings.test_views)
    if not distributed.is_main():
        return
    predictions = predictions_of(
        run, model, data.valid.in_order(distributed_over_ranks=False), settings.test_views
    )
    inspection.show_answers(run, settings, predictions, data.classes)
    inspection.draw(run, settings, "mistakes", _mistakes(data, predictions), colours=ALL_COLOURS)
    sample = data.valid.rows(rows)
    _convolutions(run, settings, model, sample)
    _embed(run, settings, model, data, sample, layer_names)


def _stages(model: nn.Module, data: ImageData) -> list[str]:
    """Return the layers to embed: those that the network names, or else the last one in each of its parts."""
    own = getattr(model, "stages", None)
    if isinstance(own, tuple | list) and all(isinstance(each, str) for each in own):
        return list(own)
    example = next(_images(data.valid))[:1]
    last_of = {row.name.split(".")[0]: row.name for row in layers.table(model, example) if row.shape}
    return list(last_of.values())[-MOST_STAGES:]


def _mistakes(data: ImageData, predictions: answers.Predictions) -> Figure:
    rows = answers.most_confident_mistakes(predictions, 24)
    wrong = data.valid.rows(rows.to(data.valid.labels.device))
    true, answered = predictions.labels[rows], predictions.classes[rows]
    return pictures.mistakes(
        _coloured(data, wrong, data.preprocessing.size),
        [data.classes[label] for label in true],
        [data.classes[label] for label in answered],
        predictions.probabilities[rows, answered].tolist(),
    )


def _convolutions(run: TrainingRun, settings: ViewSettings, model: nn.Module, sample: Examples) -> None:
    """Draw the first convolution's weights, and log and draw the activations of all convolutions, if any."""
    first = next(((name, each) for name, each in model.named_modules() if isinstance(each, nn.Conv2d)), None)
    if first is None:
        return
    name, convolution = first
    weights = convolution.weight.detach().float().cpu().numpy()
    inspection.draw(run, settings, "filters", filter_pictures.filters(weights, name), colours=ALL_COLOURS)
    with distributed.autocast(run.device, run.settings.amp):
        activations = activation_statistics(model, _images(sample))
    for line in activation_table(activations):
        run.log.text("ACTIVATIONS", line)
    inspection.draw(run, settings, "activations", filter_pictures.activations(activations))


def _embed(
    run: TrainingRun,
    settings: ViewSettings,
    model: nn.Module,
    data: ImageData,
    sample: Examples,
    layer_names: list[str],
) -> None:
    with distributed.autocast(run.device, run.settings.amp):
        features = layer_features(model, layer_names, _images(sample), settings.pool)
    labels = sample.labels.cpu()
    embedding = inspection.show_features(run, settings, features, labels, data.classes)
    if not (settings.projector or settings.thumbnails):
        return
    thumbnails = _thumbnails(data, sample)
    if settings.thumbnails:
        layer = _deepest_map(model, sample, layer_names)
        points = embedding.points[layer]["tsne"]
        sheet = feature_pictures.thumbnail_sheet(points, thumbnails, labels.numpy(), data.classes, layer)
        inspection.draw(run, settings, "thumbnails", sheet, colours=ALL_COLOURS)
    if settings.projector:
        names = [data.classes[label] for label in labels]
        write_projector(settings.projector, features, names, thumbnails)
        run.log.event("PROJECTOR", folder=settings.projector)


def _deepest_map(model: nn.Module, sample: Examples, layer_names: list[str]) -> str:
    """Return the last layer whose output is a map larger than 1×1, or the last layer if none is."""
    example = next(_images(sample))[:1]
    with (
        layers.evaluating(model),
        layers.record(layers.resolve(model, layer_names)) as outputs,
        torch.no_grad(),
    ):
        model(example)
    maps = [name for name in layer_names if outputs[name].dim() == 4 and outputs[name][0, 0].numel() > 1]
    return (maps or layer_names)[-1]


def _images(split: Examples) -> Iterator[Tensor]:
    return (inputs for inputs, _ in split.in_order(distributed_over_ranks=False))


def _thumbnails(data: ImageData, split: Examples) -> np.ndarray:
    return _coloured(data, split, min(data.preprocessing.size, THUMBNAIL_SIDE))


def _coloured(data: ImageData, split: Examples, side: int) -> np.ndarray:
    """Return the images of a split as (N, side, side, 3) uint8, resized batch by batch."""
    parts = [np.zeros((0, side, side, 3), np.uint8)]
    for images in _images(split):
        pixels = resize(data.pixels(images), side)
        colour = pixels.expand(-1, 3, -1, -1)
        parts.append((colour.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)
