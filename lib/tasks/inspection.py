"""Figures and tables of `--eval-only` that images and text share: confusion matrix and features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lib.evaluation import answers
from lib.evaluation.embedding import Embedding, embed_layers
from lib.evaluation.features import stratified_sample
from lib.figures import classification as pictures
from lib.figures import features as feature_pictures
from lib.figures import style
from lib.runtime.errors import UserError
from lib.runtime.files import writable_folder
from lib.training.session import Session


def sample(run: Session, labels: Tensor) -> Tensor:
    """Return the indices of the examples to embed, a stratified sample.

    Raises:
        UserError: the sample is too small for the perplexity.
    """
    rows = stratified_sample(labels, run.flags.samples)
    if _perplexity(run, len(rows)) >= len(rows):
        raise UserError(f"--perplexity {run.flags.perplexity:g} must be less than the {len(rows)} samples")
    return rows


def _perplexity(run: Session, samples: int) -> float:
    return run.flags.perplexity or min(30.0, samples / 3)


def make_folders(run: Session) -> None:
    """Create the folders for pictures and for the projector's files.

    Raises:
        UserError: a folder cannot be written.
    """
    for folder in (run.flags.out_dir, run.flags.projector):
        if folder:
            writable_folder(folder)


def show_answers(run: Session, predictions: answers.Predictions, classes: Sequence[str]) -> None:
    """Log a table of the metrics of each class, and draw the confusion matrix."""
    for line in answers.per_class(predictions, classes):
        run.log.text("CLASSES", line)
    draw(run, "confusion", pictures.confusion_matrix(answers.confusion(predictions), classes))


def show_features(
    run: Session, features: Mapping[str, np.ndarray], labels: Tensor, classes: Sequence[str]
) -> Embedding:
    """Draw the features (N, D) of each layer by PCA and t-SNE, and log their neighbour accuracies."""
    flags = run.flags
    perplexity = _perplexity(run, len(labels))
    embedding = embed_layers(features, labels, dims=flags.dims, perplexity=perplexity, seed=flags.seed)
    for layer, scores in embedding.accuracies.items():
        named = {f"{method}_neighbour_accuracy": score for method, score in scores.items()}
        run.log.event("FEATURE", layer=layer, **named)
    sizes = {layer: array.shape[1] for layer, array in features.items()}
    panels = feature_pictures.layer_panels(
        embedding.points, embedding.accuracies, sizes, labels.numpy(), classes
    )
    draw(run, "feature", panels)
    return embedding


def draw(run: Session, what: str, figure: Figure, *, colours: int | None = 256) -> None:
    """Save a figure with a palette of `colours` (None for full colour), and log its path."""
    path = Path(run.flags.out_dir) / f"{what}-{run.flags.dataset}.png"
    run.log.event("FIGURE", file=style.save(figure, path, show=run.flags.show, colours=colours))
