"""Variational autoencoders (Kingma & Welling 2014, arXiv:1312.6114): plain, conditional, adversarial.

A latent vector z of the prior N(0, I) is decoded to the parameters of a likelihood p(x|z) of the pixels; the
encoder gives the parameters μ and log σ² of the posterior q(z|x) = N(μ, diag σ²). The evidence lower bound is

    log p(x) ≥ ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))

in nats, a sum over the pixels and over the latent units.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models import vae_networks
from lib.runtime.errors import UserError

LIKELIHOODS = ("bce", "mse")
VARIANCE_STEP = 0.02  # share of a batch's mean squared error in the running variance
# Log variances of q are kept in this range: beyond it, exp() of an untrained encoder overflows.
LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -20.0, 10.0


class Output(NamedTuple):
    """A pass of B images through an autoencoder, with K latent vectors for each.

    Attributes:
        logits: decoded images before the sigmoid, (K, B, C, H, W).
        mu, logvar: mean and log variance of q(z|x), (B, L).
        z: latent vectors drawn from q(z|x), (K, B, L).
        log_likelihood: log p(target|z) in nats, (K, B).
    """

    logits: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor
    log_likelihood: Tensor

    def log_weights(self, beta: float = 1.0) -> Tensor:
        """Return log w = log p(x|z) + β (log p(z) − log q(z|x)), (K, B); see `bound`."""
        standard = (self.z - self.mu) * (-0.5 * self.logvar).exp()
        # The constants L/2 · log 2π of both densities cancel.
        log_ratio = 0.5 * (standard.square() + self.logvar - self.z.square()).sum(-1)
        return self.log_likelihood + beta * log_ratio


def kl_per_unit(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) = (μ² + σ² − 1 − log σ²) / 2 of each latent unit, in nats, (B, L)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def bound(log_weights: Tensor) -> Tensor:
    """Return the importance-weighted bound log (1/K Σ_k w_k) of each image, (B,), from log w (K, B).

    Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, equation 8. With K = 1 it is an estimate of the
    ELBO; it grows with K towards log p(x).
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


class Vae(nn.Module):
    """A variational autoencoder of square images with pixels in [0, 1].

    Args:
        channels: channels of the images.
        size: side of the images in pixels, a multiple of 4.
        latent: number of latent units.
        net: `linear` (fully connected) or `conv`.
        hidden, depth: units of each hidden layer, and number of these layers on either side.
        dropout: share of the encoder's hidden units that training drops.
        loss: likelihood of the pixels: `bce`, Bernoulli; `mse`, normal with one variance for all pixels,
            which is that of the residuals (σ-VAE, Rybkin, Daniilidis & Levine 2021, arXiv:2006.13202).
        activation: `silu` or `relu`; guided backpropagation is defined for the latter.
        classes: number of classes that it is told of; without, 0.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        *,
        latent: int = 20,
        net: str = "linear",
        hidden: int = 512,
        depth: int = 2,
        dropout: float = 0.0,
        loss: str = "bce",
        activation: str = "silu",
        classes: int = 0,
    ) -> None:
        super().__init__()
        if (
            net not in vae_networks.NETS
            or loss not in LIKELIHOODS
            or activation not in vae_networks.ACTIVATIONS
        ):
            raise ValueError(f"no such net, loss or activation: {net}, {loss}, {activation}")
        if size < 8 or size % 4:
            raise UserError(f"the autoencoders take images whose side is a multiple of 4, not of {size} px")
        self.shape = (channels, size, size)
        self.latent, self.classes, self.loss = latent, self.told(classes), loss
        layers = vae_networks.Hidden(hidden, depth, activation)
        dropping = layers._replace(dropout=dropout)
        self.encoder = vae_networks.encoder(net, self.shape, self.classes, 2 * latent, dropping)
        self.decoder = vae_networks.decoder(net, self.shape, latent + self.classes, layers)
        # Of `mse`: the variance of a pixel given z, a running mean of the training residuals.
        self.register_buffer("variance", torch.tensor(0.05))

    @staticmethod
    def told(_classes: int) -> int:
        """Return the number of classes among those of the data that the networks are told of."""
        return 0

    def condition(self, labels: Tensor | None, count: int) -> Tensor:
        """Return what the networks are told of labels (B,), as (B, classes); zeros for None."""
        like = cast(Tensor, self.variance)
        if labels is None or not self.classes:
            return like.new_zeros(count, self.classes)
        return F.one_hot(labels, self.classes).to(like.dtype)

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x), each (B, L), for images (B, C, H, W)."""
        both = self.encoder(images, self.condition(labels, len(images))).float()
        mu, logvar = both.chunk(2, 1)
        return mu, logvar.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def logits(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return decoded images before the sigmoid, (B, C, H, W), for latent vectors (B, L)."""
        condition = self.condition(labels, len(z))
        return self.decoder(torch.cat([z, condition], 1) if self.classes else z).float()

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image of p(x|z), pixels in [0, 1], (B, C, H, W), for latent vectors (B, L)."""
        return self.logits(z, labels).sigmoid()

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the decoded means z = μ(x) of images (B, C, H, W), as pixels in [0, 1]."""
        return self.decode(self.encode(images, labels)[0], labels)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        samples: int = 1,
    ) -> Output:
        """Encode images (B, C, H, W), draw latent vectors from q(z|x) and decode them.

        Args:
            images: what is encoded.
            labels: (B,), for a network that is told of them.
            target: the images whose likelihood is asked; None for `images`. They differ in denoising.
            samples: number K of latent vectors per image.
        """
        mu, logvar = self.encode(images, labels)
        z = mu + (0.5 * logvar).exp() * torch.randn(samples, *mu.shape, device=mu.device)
        repeated = None if labels is None else labels.repeat(samples)
        logits = self.logits(z.flatten(0, 1), repeated).unflatten(0, (samples, len(images)))
        likelihood = self.log_likelihood(logits, images if target is None else target)
        return Output(logits, mu, logvar, z, likelihood)

    def log_likelihood(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return log p(target|z) in nats, (K, B), for decoded logits (K, B, C, H, W).

        Bernoulli: Σ x log p + (1 − x) log(1 − p). Grey pixels are taken for probabilities, as is usual; the
        figure is then comparable among networks for the same images, and is no log density.

        Normal: −Σ (x − p)² / 2σ² − D/2 log 2πσ². In training, σ² is the mean squared error of the batch, at
        which the likelihood is largest. Its gradient is that of −D/2 log MSE, so that the KL term keeps its
        weight whatever the scale of the errors. Otherwise σ² is the running mean of training.
        """
        target = target.expand_as(logits)
        if self.loss == "bce":
            return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2).sum(2)
        errors = (logits.sigmoid() - target).square().flatten(2).sum(2)
        pixels, variance = logits[0, 0].numel(), cast(Tensor, self.variance)
        if self.training:
            with torch.no_grad():
                now = (errors.mean() / pixels).clamp(min=1e-8)
                variance.lerp_(now, VARIANCE_STEP)
            variance = now
        return -0.5 * (errors / variance + pixels * (2 * math.pi * variance).log())


class ConditionalVae(Vae):
    """A VAE whose encoder and decoder are told the class (Sohn, Lee & Yan 2015): z holds the style alone."""

    @staticmethod
    def told(classes: int) -> int:
        return classes


class Discriminator(nn.Module):
    """Tells images from decoded ones; the maps of its last convolution measure how alike two images are.

    It is convolutional for `--net linear`, too: the features of fully connected layers say too little of an
    image, and the reconstructions then hardly resemble it.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        steps, side = vae_networks.halvings(shape[1])
        widths = vae_networks.WIDTHS[:steps]
        layers: list[nn.Module] = []
        for before, after in zip((shape[0], *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.answer = nn.Linear(widths[-1] * side**2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to logits (B,) of being real, and their features (B, F)."""
        features = self.features(images)
        return self.answer(features).squeeze(1).float(), features.float()


class VaeGan(Vae):
    """A VAE with a discriminator (Larsen et al. 2016, arXiv:1512.09300); see `lib.training.variational`."""

    def __init__(self, channels: int = 1, size: int = 28, **options: Any) -> None:
        super().__init__(channels, size, **options)
        self.discriminator = Discriminator(self.shape)
