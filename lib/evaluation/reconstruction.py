"""How well an autoencoder reconstructs: the bound and its parts, errors beside PCA's, active latent units."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.models import layers, vae
from lib.runtime.errors import UserError

Batches = Iterable[tuple[Tensor, Tensor]]

# A latent unit is active if its mean varies by more than this over the data (Burda et al. 2016, § 4.2).
ACTIVE_VARIANCE = 0.01
# Latent vectors that are decoded at once by `importance_bound`.
VECTORS_AT_ONCE = 5000
# Images on which PCA is fitted: an exact decomposition of more would take minutes.
MOST_IMAGES_FOR_PCA = 60_000
MOST_PIXELS_FOR_COVARIANCE = 3072


class Evidence(NamedTuple):
    """Means over the images of a split, in nats; the posterior is sampled once for each image.

    Attributes:
        negative_elbo: reconstruction + KL.
        reconstruction: −log p(x|z).
        kl: KL(q(z|x) ‖ p(z)).
        mse: mean squared error of a pixel, z = μ.
        mu, logvar: of every image, (N, L), on the CPU.
        labels: (N,), on the CPU.
    """

    negative_elbo: float
    reconstruction: float
    kl: float
    mse: float
    mu: Tensor
    logvar: Tensor
    labels: Tensor

    @property
    def active(self) -> Tensor:
        """Mask (L,) of the active latent units: those whose mean depends on the image."""
        return self.mu.double().var(0, correction=0) > ACTIVE_VARIANCE


def evidence(model: vae.Vae, batches: Batches) -> Evidence:
    """Return the bound, its parts and the latent means of all images of `batches`.

    Raises:
        UserError: there are no images.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with layers.evaluating(model), torch.no_grad():
        for images, labels in batches:
            out: vae.Output = model(images, labels)
            errors = (model.decode(out.mu, labels) - images).square().flatten(1).mean(1).sum()
            kl = vae.kl_per_unit(out.mu, out.logvar).sum()
            found = (-out.log_likelihood.sum(), kl, errors)
            sums += torch.stack([each.double().cpu() for each in found])
            parts.append((out.mu.cpu(), out.logvar.cpu(), labels.cpu()))
    if not parts:
        raise UserError("there are no images to evaluate")
    mu, logvar, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    reconstruction, kl, mse = (sums / len(mu)).tolist()
    return Evidence(reconstruction + kl, reconstruction, kl, mse, mu, logvar, labels)


def importance_bound(model: vae.Vae, batches: Batches, samples: int) -> float:
    """Return the mean importance-weighted bound on −log p(x) with K = `samples`, in nats.

    See `lib.models.vae.bound`: it is at most the negative ELBO on average, and falls with K.
    """
    total, count = 0.0, 0
    with layers.evaluating(model), torch.no_grad():
        for images, labels in batches:
            size = max(1, VECTORS_AT_ONCE // samples)
            for some, its in zip(images.split(size), labels.split(size), strict=True):
                weights = [
                    model(some, its, None, min(VECTORS_AT_ONCE, samples - first)).log_weights()
                    for first in range(0, samples, VECTORS_AT_ONCE)
                ]
                total -= float(vae.bound(torch.cat(weights)).double().sum())
                count += len(some)
    return total / count


def noisy_error(model: vae.Vae, batches: Batches, noise) -> float:
    """Return the mean squared error of a pixel between clean images and reconstructions of noisy ones.

    Args:
        model: the autoencoder.
        batches: clean images and labels.
        noise: function from images to noisy images.
    """
    total, count = 0.0, 0
    with layers.evaluating(model), torch.no_grad():
        for images, labels in batches:
            errors = (model.reconstruct(noise(images), labels) - images).square().flatten(1).mean(1)
            total, count = total + float(errors.double().sum()), count + len(images)
    return total / count


def pca_error(train: Batches, valid: Batches, components: int) -> float:
    """Return the mean squared error of a pixel of PCA's reconstructions: fitted on `train`, asked on `valid`.

    With as many components as the autoencoder has latent units, it is what the best linear one reaches.
    """
    known = _flat(train, MOST_IMAGES_FOR_PCA)
    mean = known.mean(0)
    centred = known - mean
    if centred.shape[1] <= MOST_PIXELS_FOR_COVARIANCE:
        # Accumulated in float32, whose error is far below the eigenvalues that count here.
        _, vectors = torch.linalg.eigh((centred.T @ centred).double() / len(known))
        axes = vectors.flip(1)[:, :components].float()
    else:
        count = min(len(centred), 2000)
        _, _, rows = torch.linalg.svd(centred[:count], full_matrices=False)
        axes = rows[:components].T
    asked = _flat(valid, MOST_IMAGES_FOR_PCA) - mean
    return float((asked - asked @ axes @ axes.T).square().mean())


def _flat(batches: Batches, most: int) -> Tensor:
    parts, count = [], 0
    for images, _ in batches:
        parts.append(images.flatten(1).float().cpu())
        count += len(images)
        if count >= most:
            break
    return torch.cat(parts)[:most]


def latent_means(found: Evidence, classes: int) -> Tensor:
    """Return the mean of μ of each class, (classes, L); NaN for a class without images."""
    return torch.stack([found.mu[found.labels == label].mean(0) for label in range(classes)])


def energy(images: Tensor) -> float:
    """Return the mean squared Laplacian of images (N, C, H, W): how sharp they are.

    The Laplacian is that of four neighbours, ∇²x = x(up) + x(down) + x(left) + x(right) − 4 x. A blur lowers
    it, so that of two sets of images of the same things the sharper one has the larger energy.
    """
    inner = images[..., 1:-1, 1:-1]
    around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    return float((around - 4 * inner).square().mean())


def diversity(images: Tensor) -> float:
    """Return the mean squared distance of a pixel between two of N images: 0 if all are the same image.

    The mean over pairs is 2 N/(N − 1) times the variance.
    """
    return float(2 * images.flatten(1).double().var(0, correction=1).mean())
