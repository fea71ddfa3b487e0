"""Images from the latent space of an autoencoder: interpolations, traversals, styles, imputation.

Everything here takes images and returns images, (…, C, H, W) in [0, 1] on the CPU, and draws nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.models import layers
from lib.models.vae import Vae

IMPUTATION_STEPS = 100
TRAVERSAL_REACH = 2.5


class Endpoint(NamedTuple):
    """An end of an interpolation.

    Attributes:
        name: for titles.
        z: latent vectors (N, L): first the one that the end is, then those of single examples, if any.
        images: the examples (M, C, H, W), which may be none.
        label: the class that a conditional network is told; None if unknown.
    """

    name: str
    z: Tensor
    images: Tensor
    label: int | None = None


def interpolate(model: Vae, first: Endpoint, second: Endpoint, alphas: Sequence[float]) -> Tensor:
    """Return decoded z = α z₁ + (1 − α) z₂ for each pair of vectors and each α, (N, A, C, H, W).

    A conditional network is told the class of the nearer end.
    """
    count = min(len(first.z), len(second.z))
    rows = []
    for alpha in alphas:
        z = alpha * first.z[:count] + (1 - alpha) * second.z[:count]
        label = first.label if alpha >= 0.5 else second.label
        rows.append(decode(model, z, label))
    return torch.stack(rows, 1)


def decode(model: Vae, z: Tensor, labels: Tensor | int | None = None) -> Tensor:
    """Return the decoded images of latent vectors (N, L), on the CPU; one label counts for all of them."""
    device = next(model.parameters()).device
    if isinstance(labels, int):
        labels = torch.full((len(z),), labels)
    with layers.evaluating(model), torch.no_grad():
        return model.decode(z.to(device), None if labels is None else labels.to(device)).cpu()


def encode(model: Vae, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the latent means of images, (N, L), on the CPU."""
    device = next(model.parameters()).device
    with layers.evaluating(model), torch.no_grad():
        return model.encode(images.to(device), None if labels is None else labels.to(device))[0].cpu()


def traverse(model: Vae, z: Tensor, units: Sequence[int], steps: int, label: int | None = None) -> Tensor:
    """Return decoded images of one vector z (L,) with one unit changed, (units, steps, C, H, W).

    Each unit goes from −2.5 to 2.5, five standard deviations of the prior.
    """
    values = torch.linspace(-TRAVERSAL_REACH, TRAVERSAL_REACH, steps)
    rows = []
    for unit in units:
        moved = z.repeat(steps, 1)
        moved[:, unit] = values
        rows.append(decode(model, moved, label))
    return torch.stack(rows)


def plane(model: Vae, steps: int, reach: float) -> Tensor:
    """Return decoded points of a 2-D latent space, (steps, steps, C, H, W): z₁ by row, z₀ by column."""
    values = torch.linspace(-reach, reach, steps)
    down, across = torch.meshgrid(values, values, indexing="ij")
    z = torch.stack([across, down], -1).view(-1, 2)
    return decode(model, z).unflatten(0, (steps, steps))


def mix_styles(model: Vae, z: Tensor) -> Tensor:
    """Return each style z (N, L) of a conditional network in each of its classes, (N, classes, C, H, W)."""
    return torch.stack([decode(model, z, label) for label in range(model.classes)], 1)


def impute(model: Vae, images: Tensor, hidden: Tensor, labels: Tensor | None = None, seed: int = 0) -> Tensor:
    """Return images with their hidden pixels filled in by iterated reconstruction, (N, C, H, W).

    The hidden pixels begin as noise; again and again the image is encoded and decoded, and the hidden pixels
    are replaced by the decoded ones, the others kept. With z ~ q(z|x) this is a Markov chain whose limit is
    near p(hidden|visible) (Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082, appendix F); z = μ in the last
    tenth of the steps gives its mode instead of a sample.

    Args:
        model: the autoencoder.
        images: (N, C, H, W).
        hidden: mask (H, W), true where pixels are hidden; what `images` has there does not matter.
        labels: (N,), for a network that is told of them.
        seed: seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    noise = torch.rand(images.shape, generator=generator)
    filled = torch.where(hidden, noise, images.cpu()).to(device)
    mask, its = hidden.to(device), None if labels is None else labels.to(device)
    with layers.evaluating(model), torch.no_grad():
        for step in range(IMPUTATION_STEPS):
            mu, logvar = model.encode(filled, its)
            if step < 0.9 * IMPUTATION_STEPS:
                draw = torch.randn(mu.shape, generator=generator).to(device)
                mu = mu + (0.5 * logvar).exp() * draw
            filled = torch.where(mask, model.decode(mu, its), filled)
    return filled.cpu()
