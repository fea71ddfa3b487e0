"""What the scripts that classify images do with a run, a network and data: train, report, predict, look."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib import distributed, embed, views
from lib.data import images, photographs
from lib.data.augment import augmentation
from lib.data.batches import InOrder, TensorBatches
from lib.data.images import ImageData, Split
from lib.errors import UserError
from lib.figures import classification as pictures
from lib.figures import style
from lib.files import writable_file, writable_folder, write_atomically
from lib.models import layers
from lib.objectives import classification
from lib.session import Session
from lib.train import evaluate


def check_input(files: Sequence[str]) -> None:
    """Complain of the first of some image files that cannot be read, before anything is loaded or logged."""
    for file in files:
        photographs.read(file)


def load(run: Session) -> ImageData:
    """Return the data that the run's flags name, prepared for its network.

    Where image files are all that is asked about, there are none but classes and sizes, and a checkpoint
    knows them.
    """
    flags = run.flags
    if not flags.input:
        data = images.load(
            flags.dataset, flags.data_dir, size=flags.size, limit=flags.limit, holdout=flags.holdout
        )
    else:
        names = run.saved.get("classes") or images.classes(flags.dataset)
        channels = run.saved.get("preprocessing", {}).get("channels", 1)
        data = images.without_examples(names, channels, flags.size)
    return data.prepared(flags.mean, flags.std, run.device)


def build(run: Session, data: ImageData) -> nn.Module:
    """Return the network for images like those of `data`."""
    channels, size = data.train.images.shape[1:3]
    example = torch.zeros(1, channels, size, size)
    return run.build(example, classes=len(data.classes), channels=channels, size=size)


def fit(run: Session, model: nn.Module, data: ImageData) -> None:
    """Train `model` on `data` as the run's flags say; it has its best weights afterwards."""
    flags = run.flags
    training = TensorBatches(
        *data.train,
        batch_size=flags.batch_size,
        seed=flags.seed,
        transform=augmentation(flags.augment, flags.shift_pixels, data.black),
    )
    run.fit(
        model,
        classification(flags.label_smoothing),
        training,
        InOrder(*data.valid),
        description={"classes": list(data.classes), "preprocessing": data.preprocessing},
    )


def report(run: Session, model: nn.Module, data: ImageData) -> None:
    """Log loss and accuracy on each split: `[EVAL]`, and `[TEST]` where examples were held out."""

    def metrics(name: str, split: Split) -> dict[str, float]:
        found = evaluate(model, classification(), InOrder(*split), amp=run.flags.amp)
        return {f"{name}_{key}": found[key] for key in ("loss", "accuracy")}

    run.log.event("EVAL", **metrics("Train", data.train), **metrics("Valid", data.valid))
    if data.test:
        run.log.event("TEST", **metrics("Test", data.test))


def predict(run: Session, model: nn.Module, data: ImageData) -> None:
    """Write a line of tab-separated values for each validation image, or for each `--input` file."""
    path = writable_file(run.flags.out_file) if run.flags.out_file else None
    if run.flags.input:
        names, split = run.flags.input, _input_split(run, data)
    else:
        names, split = range(len(data.valid.labels)), data.valid
    predictions = _predictions(run, model, split)
    labelled = not run.flags.input
    header = ["image", *(["label"] if labelled else []), "prediction", "probability", *data.classes]
    lines = ["\t".join(header)]
    answers = zip(names, predictions.labels, predictions.classes, predictions.probabilities, strict=True)
    for name, label, answer, probabilities in answers:
        truth = [data.classes[label]] if labelled else []
        chosen = [data.classes[answer], f"{probabilities[answer]:.6f}"]
        lines.append("\t".join([str(name), *truth, *chosen, *(f"{p:.6f}" for p in probabilities)]))
    if not distributed.is_main():
        return
    if path:
        write_atomically(path, ("\n".join(lines) + "\n").encode())
        run.log.event("PREDICT", Examples=len(predictions.labels), file=path)
    else:
        sys.stdout.write("\n".join(lines) + "\n")


def _input_split(run: Session, data: ImageData) -> Split:
    channels, size = data.train.images.shape[1:3]
    pixels = photographs.read_squares(run.flags.input, size, channels)
    if run.flags.invert:
        pixels = 1 - pixels
    labels = torch.zeros(len(pixels), dtype=torch.long)
    return Split((pixels - data.mean) / data.std, labels).to(run.device)


def _predictions(run: Session, model: nn.Module, split: Split) -> views.Predictions:
    with distributed.autocast(run.device, run.flags.amp):
        return views.predict(model, _here(split))


def _here(split: Split) -> InOrder:
    """The batches of a split, all of them on this rank."""
    return InOrder(*split, distributed_over_ranks=False)


def look_inside(run: Session, model: nn.Module, data: ImageData) -> None:
    """Report, log a table of classes, draw the confusion matrix, the worst mistakes, the layers' features.

    Raises:
        UserError: a layer that is not there, too few samples for the perplexity, a folder that cannot be
            written; all before anything is computed.
    """
    rows = _sample(run, data)
    layer_names = list(layers.resolve(model, run.flags.layers or model.stages))
    if run.flags.projector:
        writable_folder(run.flags.projector)
    folder = writable_folder(run.flags.out_dir)
    report(run, model, data)
    if not distributed.is_main():
        return
    predictions = _predictions(run, model, data.valid)
    for line in views.per_class(predictions, data.classes):
        run.log.text("CLASSES", line)
    _draw(run, folder, "confusion", pictures.confusion_matrix(views.confusion(predictions), data.classes))
    _draw(run, folder, "mistakes", _mistakes(run, data, predictions))
    _embed(run, model, data, data.valid.rows(rows.to(run.device)), layer_names, folder)


def _sample(run: Session, data: ImageData) -> Tensor:
    rows = views.stratified_sample(data.valid.labels.cpu(), run.flags.samples)
    if run.flags.perplexity >= len(rows):
        raise UserError(f"--perplexity {run.flags.perplexity:g} must be less than the {len(rows)} samples")
    return rows


def _mistakes(run: Session, data: ImageData, predictions: views.Predictions) -> Figure:
    rows = views.most_confident_mistakes(predictions, 24)
    true, answered = predictions.labels[rows], predictions.classes[rows]
    return pictures.mistakes(
        _thumbnails(data.pixels(data.valid.images[rows.to(run.device)])),
        [data.classes[label] for label in true],
        [data.classes[label] for label in answered],
        predictions.probabilities[rows, answered].tolist(),
    )


def _embed(
    run: Session, model: nn.Module, data: ImageData, sample: Split, layer_names: list[str], folder: Path
) -> None:
    flags = run.flags
    with distributed.autocast(run.device, flags.amp):
        features = views.layer_features(model, layer_names, _images(sample), flags.pool)
    labels = sample.labels.cpu()
    embedding = views.embed_layers(
        features, labels, data.classes, dims=flags.dims, perplexity=flags.perplexity, seed=flags.seed
    )
    for layer, scores in embedding.accuracies.items():
        named = {f"{method}_neighbour_accuracy": score for method, score in scores.items()}
        run.log.event("FEATURE", layer=layer, **named)
    _draw(run, folder, "feature", embedding.figure)
    if flags.projector:
        names = [data.classes[label] for label in labels]
        embed.write_projector(flags.projector, features, names, _thumbnails(data.pixels(sample.images)))
        run.log.event("PROJECTOR", folder=flags.projector)


def _images(split: Split) -> Iterator[Tensor]:
    return (inputs for inputs, _ in _here(split))


def _thumbnails(pixels: Tensor) -> np.ndarray:
    """Pixels (N, C, H, W) in [0, 1] as (N, H, W, 3) uint8."""
    colour = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
    return (colour * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _draw(run: Session, folder: Path, what: str, figure: Figure) -> None:
    # The mistakes are photographs; the rest are drawings, which a palette does.
    colours = None if what == "mistakes" else 256
    path = style.save(
        figure, folder / f"{what}-{run.flags.dataset}.png", show=run.flags.show, colours=colours
    )
    run.log.event("FIGURE", file=path)
