"""Pictures of `--eval-only` for autoencoders: reconstructions, samples, walks through the latent space."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib.data.images import Examples, ImageData, resize
from lib.evaluation import reconstruction as evaluation
from lib.evaluation.features import layer_features
from lib.evaluation.projector import write_projector
from lib.figures import features as feature_pictures
from lib.figures import reconstruction as pictures
from lib.models import layers, vae
from lib.models.vae import Vae
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.runtime.spelling import readable
from lib.tasks import inspection, latent_images
from lib.tasks.latent_images import Endpoint
from lib.tasks.reconstruction import ReportSettings, report
from lib.tasks.reconstruction_output import draw
from lib.training.run import TrainingRun

ALL_COLOURS = None
SHOWN = 20  # originals over their reconstructions
SAMPLES_A_SIDE = 8
STEPS = 11  # of a traversal
MOST_TRAVERSED = 20
PLANE_STEPS, PLANE_REACH = 20, 2.5
PAIRS = 4  # of examples that are interpolated below the means of two classes
STYLES = 6
IMPUTED = 8
THUMBNAIL_SIDE = 64
USUAL_ALPHAS = tuple(1 - step / 8 for step in range(9))


@dataclass(frozen=True)
class ViewSettings(inspection.ViewSettings):
    """The flags of the pictures of an autoencoder."""

    interpolate: list[str] | None = None
    alphas: tuple[float, ...] | None = None
    impute: tuple[int, int, int, int] | None = None


def look_inside(run: TrainingRun, model: Vae, data: ImageData, settings: ViewSettings) -> None:
    """Log the metrics and draw what the autoencoder learnt.

    Raises:
        UserError: a flag names no class, image, layer or box of these images; all are checked before anything
            is computed.
    """
    rows = inspection.sample(settings, data.valid.labels.cpu()).to(data.valid.labels.device)
    layer_names = list(layers.resolve(model, settings.layers or ()))
    if settings.thumbnails and settings.dims != 2:
        raise UserError("--thumbnails goes with --dims 2 alone")
    hidden = _hidden(settings, data)
    ends = _ends(model, data, settings.interpolate)
    inspection.make_folders(settings)
    found = report(run, model, data, ReportSettings.of(run.flags))
    if found is None:
        return
    show = _Show(run, settings)
    _draw_reconstructions(show, model, data)
    _draw_samples(show, model, data)
    _draw_interpolation(show, model, ends, settings.alphas or USUAL_ALPHAS)
    _draw_latent_units(show, model, found)
    if hidden is not None:
        _draw_imputation(show, model, data, hidden)
    _embed(run, settings, model, data, data.valid.rows(rows), layer_names)


class _Show:
    """Saves sheets of images in full colour."""

    def __init__(self, run: TrainingRun, settings: ViewSettings) -> None:
        self.run, self.settings = run, settings

    def __call__(self, what: str, figure: Figure) -> None:
        inspection.draw(self.run, self.settings, what, figure, colours=ALL_COLOURS)


# ---- checks, and what flags name


def _hidden(settings: ViewSettings, data: ImageData) -> Tensor | None:
    """Return the mask (H, W) of `--impute`."""
    if settings.impute is None:
        return None
    size = data.preprocessing.size
    top, left, bottom, right = settings.impute
    if max(bottom, right) > size:
        raise UserError(
            f"--impute {top},{left},{bottom},{right} is not within the images of {size}×{size} px"
        )
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def _ends(model: Vae, data: ImageData, names: Sequence[str] | None) -> tuple[Endpoint, Endpoint]:
    """Return the ends of the interpolation: two classes, images of the validation split, or files."""
    names = names or ("index:0", f"index:{min(1, len(data.valid.labels) - 1)}")
    # Of two classes, files of the same name are of one person or thing: they make the pairs.
    alike = set.intersection(*(set(_rows_of_files(data, each)) for each in names))
    first, second = (_end(model, data, name, sorted(alike)) for name in names)
    return first, second


def _rows_of_files(data: ImageData, class_name: str) -> dict[str, tuple[Examples, int]]:
    """Return where the files of a class are, a split and a row, by their names without folder and suffix."""
    found = {}
    for split in (data.train, data.valid) if class_name in data.classes else ():
        for row, (path, label) in enumerate(zip(split.names or (), split.labels.tolist(), strict=False)):
            if data.classes[label] == class_name:
                found[Path(path).stem] = (split, row)
    return found


def _end(model: Vae, data: ImageData, name: str, alike: Sequence[str]) -> Endpoint:
    if name in data.classes:
        return _class_end(model, data, name, alike)
    number = name.removeprefix("index:")
    count = len(data.valid.labels)
    if number.isdecimal():
        if int(number) >= count:
            raise UserError(
                f"--interpolate: there is no image {number}: the validation split has 0 to {count - 1}"
            )
        images, labels = pixels_of(data.valid.rows(torch.tensor([int(number)])))
        label = int(labels[0])
        z = latent_images.encode(model, images, labels)
        return Endpoint(f"image {number}", z, images, label)
    if not os.path.exists(name):
        raise UserError(
            f"--interpolate: {name!r} is no class, no image 0 to {count - 1} and no file; "
            f"classes: {', '.join(data.classes[:12])}{', …' if len(data.classes) > 12 else ''}"
        )
    if model.classes:
        raise UserError("--interpolate: cvae must be told the class of each image: name classes or numbers")
    image = data.preprocessing.read(name)[None]
    return Endpoint(os.path.basename(name), latent_images.encode(model, image), image)


def _class_end(model: Vae, data: ImageData, name: str, alike: Sequence[str]) -> Endpoint:
    """Return the mean of a class over training and validation images, and some examples of it.

    Examples are the files called `alike`, if there are any, else the first of the validation split.
    """
    label = data.classes.index(name)
    of_both = []
    for split in (data.train, data.valid):
        rows = (split.labels == label).nonzero().squeeze(1)
        of_both.append(split.rows(rows) if len(rows) else None)
    means = [latent_images.encode(model, *pixels_of(split)) for split in of_both if split is not None]
    if not means:
        raise UserError(f"--interpolate: there is no image of {name!r}")
    shown = of_both[1] if of_both[1] is not None else of_both[0]
    assert shown is not None
    examples = [shown.rows(torch.arange(min(PAIRS, len(shown.labels))))]
    if alike:
        places = _rows_of_files(data, name)
        examples = [
            split.rows(torch.tensor([row])) for split, row in (places[each] for each in alike[:PAIRS])
        ]
    images, labels = (torch.cat(each) for each in zip(*map(pixels_of, examples), strict=True))
    z = torch.cat([torch.cat(means).mean(0, keepdim=True), latent_images.encode(model, images, labels)])
    return Endpoint(name, z, images, label)


def pixels_of(split: Examples) -> tuple[Tensor, Tensor]:
    """Return all images (N, C, H, W) of a split, and their labels, on the CPU."""
    batches = [
        (images.cpu(), labels.cpu()) for images, labels in split.in_order(distributed_over_ranks=False)
    ]
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    return images, labels


def coloured(images: Tensor) -> np.ndarray:
    """Return images (…, C, H, W) as (…, H, W, 3) floats."""
    colour = images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    return colour.movedim(-3, -1).numpy()


# ---- the pictures


def _draw_reconstructions(show: _Show, model: Vae, data: ImageData) -> None:
    images, labels = pixels_of(data.valid.rows(torch.arange(min(SHOWN, len(data.valid.labels)))))
    decoded = latent_images.decode(model, latent_images.encode(model, images, labels), labels)
    errors = (decoded - images).square().flatten(1).mean(1).tolist()
    title = "originals over reconstructions, with the mean squared error of a pixel"
    show("reconstruction", pictures.reconstructions(coloured(images), coloured(decoded), errors, title))


def _draw_samples(show: _Show, model: Vae, data: ImageData) -> None:
    seed = show.settings.seed
    if model.classes:
        z = torch.randn(STYLES, model.latent, generator=torch.Generator().manual_seed(seed))
        mixed = latent_images.mix_styles(model, z[:, :])
        names = [data.classes[label][:8] for label in range(model.classes)]
        title = "one style z of the prior a row, told each class"
        show("styles", pictures.sheet(coloured(mixed), column_names=names, title=title))
        labels = torch.arange(SAMPLES_A_SIDE**2) % model.classes
    else:
        labels = None
    images = draw(model, SAMPLES_A_SIDE**2, seed, labels).unflatten(0, (SAMPLES_A_SIDE, SAMPLES_A_SIDE))
    show("samples", pictures.sheet(coloured(images), title="images decoded from z of the prior"))
    if model.latent == 2 and not model.classes:
        decoded = latent_images.plane(model, PLANE_STEPS, PLANE_REACH)
        show("manifold", pictures.manifold(coloured(decoded), PLANE_REACH))


def _draw_interpolation(
    show: _Show, model: Vae, ends: tuple[Endpoint, Endpoint], alphas: Sequence[float]
) -> None:
    first, second = ends
    rows = latent_images.interpolate(model, first, second, alphas)
    blank = torch.full((1, *model.shape), float("nan"))
    # The mean of a class has no original; the single examples stand below it.
    left, right = (
        torch.cat([blank.expand(len(rows), -1, -1, -1)[: len(rows) - len(some)], some])
        for some in (_shown(end, len(rows)) for end in ends)
    )
    whole = torch.cat([left[:, None], rows, right[:, None]], 1)
    names = ["original", *(f"α {alpha:g}" for alpha in alphas), "original"]
    labels = (
        ["mean of all", *(f"example {number}" for number in range(1, len(rows)))] if len(rows) > 1 else []
    )
    title = f"z = α · z({first.name}) + (1 − α) · z({second.name})"
    show("interpolation", pictures.sheet(coloured(whole), row_names=labels, column_names=names, title=title))


def _shown(end: Endpoint, rows: int) -> Tensor:
    """Return the originals of the rows of an interpolation; a mean, whose row is the first, has none."""
    means = len(end.z) - len(end.images)
    return end.images[: rows - means]


def _draw_latent_units(show: _Show, model: Vae, found: evaluation.Evidence) -> None:
    kl = vae.kl_per_unit(found.mu, found.logvar).mean(0).numpy()
    variances = found.mu.double().var(0, correction=0).numpy()
    statistics = pictures.latent_statistics(variances, kl, evaluation.ACTIVE_VARIANCE)
    inspection.draw(show.run, show.settings, "latent-units", statistics)
    active = found.active.nonzero().squeeze(1)
    if not len(active):
        return
    strongest = active[torch.from_numpy(kl)[active].argsort(descending=True)][:MOST_TRAVERSED].tolist()
    label = int(found.labels[0]) if model.classes else None
    images = latent_images.traverse(model, found.mu[0], strongest, STEPS, label)
    reach = latent_images.TRAVERSAL_REACH
    names = [readable(value, "g") for value in np.linspace(-reach, reach, STEPS)]
    title = "validation image 0 with one latent unit changed, most informative first"
    units = [f"z{unit}, {kl[unit]:.2f} nats" for unit in strongest]
    show("traversal", pictures.sheet(coloured(images), row_names=units, column_names=names, title=title))


def _draw_imputation(show: _Show, model: Vae, data: ImageData, hidden: Tensor) -> None:
    images, labels = pixels_of(data.valid.rows(torch.arange(min(IMPUTED, len(data.valid.labels)))))
    filled = latent_images.impute(model, images, hidden, labels, show.settings.seed)
    shown = torch.where(hidden, torch.full_like(images, 0.5), images)
    sheet = pictures.sheet(
        coloured(torch.stack([images, shown, filled])),
        row_names=["original", "hidden", "filled in"],
        title="a hidden box, filled in by iterated reconstruction",
    )
    show("imputation", sheet)


def _embed(
    run: TrainingRun,
    settings: ViewSettings,
    model: Vae,
    data: ImageData,
    sample: Examples,
    layer_names: list[str],
) -> None:
    """Draw the latent means, and the features of `--layers`, by PCA and t-SNE."""
    images, labels = pixels_of(sample)
    features = {"latent mean": latent_images.encode(model, images, labels).numpy()}
    if layer_names:
        batches = (some.to(run.device) for some in images.split(250))
        with distributed.autocast(run.device, run.settings.amp):
            features |= layer_features(model, layer_names, batches, settings.pool)
    embedding = inspection.show_features(run, settings, features, labels, data.classes)
    if not (settings.thumbnails or settings.projector):
        return
    small = resize(images, min(data.preprocessing.size, THUMBNAIL_SIDE))
    thumbnails = (coloured(small).clip(0, 1) * 255).round().astype(np.uint8)
    if settings.thumbnails:
        points = embedding.points["latent mean"]["tsne"]
        sheet = feature_pictures.thumbnail_sheet(
            points, thumbnails, labels.numpy(), data.classes, "latent mean"
        )
        inspection.draw(run, settings, "thumbnails", sheet, colours=ALL_COLOURS)
    if settings.projector:
        names = [data.classes[label] for label in labels.tolist()]
        write_projector(settings.projector, features, names, thumbnails)
        run.log.event("PROJECTOR", folder=settings.projector)
