"""Figures and tables of `--eval-only` that images and text share: confusion matrix and features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from lib.runtime.settings import Settings
from lib.training.run import TrainingRun


@dataclass(frozen=True)
class ViewSettings(Settings):
    """The flags of `--eval-only`."""

    seed: int
    out_dir: str
    show: bool
    layers: list[str] | None
    samples: int
    dims: int
    perplexity: float | None
    projector: str | None
    pool: str = "flatten"
    thumbnails: bool = False
    test_views: int = 1

    def perplexity_of(self, samples: int) -> float:
        """Return the perplexity of t-SNE for a number of samples."""
        return self.perplexity or min(30.0, samples / 3)


def sample(settings: ViewSettings, labels: Tensor) -> Tensor:
    """Return the indices of the examples to embed, a stratified sample.

    Raises:
        UserError: the sample is too small for the perplexity.
    """
    rows = stratified_sample(labels, settings.samples)
    if settings.perplexity_of(len(rows)) >= len(rows):
        raise UserError(f"--perplexity {settings.perplexity:g} must be less than the {len(rows)} samples")
    return rows


def make_folders(settings: ViewSettings) -> None:
    """Create the folders for pictures and for the projector's files.

    Raises:
        UserError: a folder cannot be written.
    """
    for folder in (settings.out_dir, settings.projector):
        if folder:
            writable_folder(folder)


def show_answers(
    run: TrainingRun, settings: ViewSettings, predictions: answers.Predictions, classes: Sequence[str]
) -> None:
    """Log a table of the metrics of the classes, and draw the confusion matrix.

    Of many classes, it has the worst classes alone, and the largest confusions are drawn, too; of so many
    that a matrix would show nothing, these alone.
    """
    for line in answers.per_class(predictions, classes):
        run.log.text("CLASSES", line)
    counts = answers.confusion(predictions)
    if len(classes) <= pictures.MOST_CLASSES_WITH_NAMES:
        draw(run, settings, "confusion", pictures.confusion_matrix(counts, classes))
    if len(classes) > pictures.MOST_CLASSES_WITH_COUNTS:
        draw(run, settings, "largest-confusions", pictures.largest_confusions(counts, classes))


def show_features(
    run: TrainingRun,
    settings: ViewSettings,
    features: Mapping[str, np.ndarray],
    labels: Tensor,
    classes: Sequence[str],
) -> Embedding:
    """Draw the features (N, D) of each layer by PCA and t-SNE, and log their neighbour accuracies."""
    embedding = embed_layers(
        features,
        labels,
        dims=settings.dims,
        perplexity=settings.perplexity_of(len(labels)),
        seed=settings.seed,
    )
    for layer, scores in embedding.accuracies.items():
        named = {f"{method}_neighbour_accuracy": score for method, score in scores.items()}
        run.log.event("FEATURE", layer=layer, **named)
    sizes = {layer: array.shape[1] for layer, array in features.items()}
    panels = feature_pictures.layer_panels(
        embedding.points, embedding.accuracies, sizes, labels.numpy(), classes
    )
    draw(run, settings, "feature", panels)
    return embedding


def draw(
    run: TrainingRun, settings: ViewSettings, what: str, figure: Figure, *, colours: int | None = 256
) -> None:
    """Save a figure with a palette of `colours` (None for full colour), and log its path."""
    path = Path(settings.out_dir) / run.picture_name(what)
    run.log.event("FIGURE", file=style.save(figure, path, show=settings.show, colours=colours))
