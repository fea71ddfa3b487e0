"""Steps of the scripts that train autoencoders: build the network, train it, report how good it is."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lib import models
from lib.data.images import Examples, ImageData
from lib.evaluation import reconstruction as evaluation
from lib.models.vae import Vae
from lib.runtime import distributed
from lib.runtime.errors import UserError, warn
from lib.runtime.settings import Settings
from lib.tasks import reconstruction_data
from lib.training import variational
from lib.training.optimisation import Settings as TrainingSettings
from lib.training.run import TrainingRun
from lib.training.validation import Metrics, by_recency

# Fewer active units than this share of the latent units are called a collapse.
COLLAPSED_SHARE = 0.1


@dataclass(frozen=True)
class LearningSettings(Settings):
    """The flags that say how an autoencoder learns, besides those of `fit` and of its loss."""

    seed: int
    batch_size: int
    augment: tuple[str, ...]
    shift_pixels: int
    augmented_share: float
    binarise: str


@dataclass(frozen=True)
class ReportSettings(Settings):
    """The flags that say what is reported of an autoencoder."""

    seed: int
    model: str
    importance_samples: int | None
    noise: str
    noise_level: float


def build(run: TrainingRun, data: ImageData) -> Vae:
    """Build the autoencoder for the images of `data`.

    Raises:
        UserError: the checkpoint is of images of another size or other channels.
    """
    channels, size = data.preprocessing.channels, data.preprocessing.size
    config: dict[str, Any] = {"channels": channels, "size": size}
    if run.settings.model == "cvae":
        if run.flags["input"]:
            raise UserError("cvae must be told the class of each image: leave out --input")
        config["classes"] = len(data.classes)
    model = run.build(torch.zeros(1, channels, size, size), **config)
    assert isinstance(model, Vae)
    return model


def by_loss(metrics: Metrics) -> tuple[float, ...]:
    """Score for `fit`: the lower loss is better."""
    return (-metrics["loss"],)


def fit(run: TrainingRun, model: Vae, data: ImageData, settings: LearningSettings) -> None:
    """Train `model` on `data`; afterwards it has its best weights.

    Where validation is on the test images, and for a VAE-GAN, whose loss does not say how good its images
    are, the latest weights are the best.
    """
    own = variational.VariationalSettings.of(run.flags)
    own.check(run.settings.model)
    training = TrainingSettings.of(run.flags)
    is_adversarial = run.settings.model == "vae-gan"
    on_test = reconstruction_data.validates_on_test(reconstruction_data.DataSettings.of(run.flags))
    batches = data.train.shuffled(
        settings.augment,
        reconstruction_data.training_augmentation(
            settings.shift_pixels, settings.augmented_share, settings.binarise
        ),
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    run.fit(
        model,
        variational.evidence(own),
        batches,
        data.valid.in_order(),
        description={"classes": list(data.classes), "preprocessing": data.preprocessing.as_dict()},
        score=by_recency if on_test or is_adversarial else by_loss,
        update=variational.adversarial(model, training, own) if is_adversarial else None,
    )


def report(
    run: TrainingRun, model: Vae, data: ImageData, settings: ReportSettings
) -> evaluation.Evidence | None:
    """Log the bound and its parts on each split, as `[EVAL]` and `[TEST]`, and warn of a posterior collapse.

    Returns:
        What was found on the validation split; None on other ranks than the first, which do nothing.
    """
    if not distributed.is_main():
        return None
    distributed.seed(settings.seed, run.device)
    train = _measure(model, data.train)
    valid = _measure(model, data.valid)
    extra = _more(run, model, data.valid, settings)
    run.log.event(
        "EVAL",
        **_numbers("Train", train),
        **_numbers("Valid", valid),
        Valid_PCA_MSE=_pca(data, data.valid, model.latent),
        Active_units=int(valid.active.sum()),
        Latent=model.latent,
        **extra,
    )
    if data.test:
        test = _measure(model, data.test)
        more = _more(run, model, data.test, settings)
        run.log.event(
            "TEST", **_numbers("Test", test), Test_PCA_MSE=_pca(data, data.test, model.latent), **more
        )
    _warn_of_collapse(valid)
    return valid


def _measure(model: Vae, split: Examples) -> evaluation.Evidence:
    return evaluation.evidence(model, split.in_order(distributed_over_ranks=False))


def _pca(data: ImageData, split: Examples, components: int) -> float:
    train, asked = (each.in_order(distributed_over_ranks=False) for each in (data.train, split))
    return evaluation.pca_error(train, asked, components)


def _numbers(name: str, found: evaluation.Evidence) -> dict[str, float]:
    return {
        f"{name}_negative_ELBO": found.negative_elbo,
        f"{name}_reconstruction": found.reconstruction,
        f"{name}_KL": found.kl,
        f"{name}_MSE": found.mse,
    }


def _more(run: TrainingRun, model: Vae, split: Examples, settings: ReportSettings) -> dict[str, float]:
    """Return the numbers that are asked for by a flag or by the network: bound, error on noisy images."""
    found: dict[str, float] = {}
    batches = split.in_order(distributed_over_ranks=False)
    if settings.importance_samples:
        found["Importance_bound"] = evaluation.importance_bound(model, batches, settings.importance_samples)
        found["Importance_samples"] = settings.importance_samples
    if settings.noise != "none":
        distributed.seed(settings.seed, run.device)
        found["Noisy_MSE"] = evaluation.noisy_error(
            model,
            batches,
            lambda images: variational.noisy(images, settings.noise, settings.noise_level),
        )
    return found


def _warn_of_collapse(found: evaluation.Evidence) -> None:
    active, units = int(found.active.sum()), len(found.active)
    if active < max(1, COLLAPSED_SHARE * units):
        warn(
            f"posterior collapse: {active} of {units} latent units depend on the image; try --free-bits 0.1, "
            "a smaller --beta, a smaller --latent, more epochs, or a smaller --learning-rate"
        )


def list_models(recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of the networks that have a recipe."""
    sys.stdout.write("\n".join(models.table(recipes)) + "\n")
