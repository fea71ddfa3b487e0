"""What variational autoencoders learn from a batch: the evidence lower bound, and VAE-GAN's three losses.

Losses are sums over pixels and latent units and means over images, in nats: with a mean over pixels the
weight of the KL term would depend on the number of pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.models import vae
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.training.objectives import Objective, Sums
from lib.training.optimisation import Settings as TrainingSettings
from lib.training.update import Minimiser, SeveralOptimizers

NOISES = ("none", "gaussian", "mask")
# A discriminator that learns as fast as the decoder soon separates all images, and its gradient fades.
DISCRIMINATOR_RATE = 0.5


@dataclass(frozen=True)
class VariationalSettings(Settings):
    """The flags that say what a variational autoencoder minimises; see their help."""

    beta: float = 1.0
    free_bits: float = 0.0
    iwae: int = 1
    noise: str = "none"
    noise_level: float = 0.5
    gamma: float = 1.0

    def check(self, model: str) -> None:
        """Raise a UserError if settings contradict each other or the network `model`."""
        if self.iwae > 1 and self.free_bits:
            raise UserError("--free-bits does not go with --iwae, whose loss has no KL term of its own")
        if self.iwae > 1 and model == "vae-gan":
            raise UserError("--iwae does not go with vae-gan, whose loss is no likelihood")
        if self.noise != "none" and model != "dvae":
            raise UserError(f"--noise goes with --model dvae alone, not with {model}")


def noisy(images: Tensor, kind: str, level: float) -> Tensor:
    """Return images with normal noise of deviation `level`, or with a share `level` of the pixels black."""
    if kind == "gaussian":
        return images + level * torch.randn_like(images)
    if kind == "mask":
        return images * (torch.rand_like(images[:, :1]) >= level)
    return images


def evidence(settings: VariationalSettings) -> Objective:
    """Return the objective of a variational autoencoder over batches of images and labels.

    It sums `loss`, `Reconstruction` = −log p(x|z) and `KL`. The loss is Reconstruction + β · KL (Higgins et
    al. 2017), and three settings change it in training alone, so that validation can be compared:

    - `free_bits` λ: each unit's KL, averaged over the batch, counts as at least λ nats, so that no unit is
      switched off early (Kingma et al. 2016, arXiv:1606.04934, equation 15).
    - `iwae` K: the negative importance-weighted bound, see `lib.models.vae.bound`.
    - `noise`: the encoder sees a noisy image, and the likelihood is that of the clean one (Im et al. 2017,
      arXiv:1511.06406).
    """

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Sums:
        images, labels = batch
        samples = settings.iwae if model.training else 1
        seen = noisy(images, settings.noise, settings.noise_level) if model.training else images
        out: vae.Output = model(seen, labels, images, samples)
        reconstruction = -out.log_likelihood.mean(0).sum()
        kl = vae.kl_per_unit(out.mu, out.logvar)
        if samples > 1:
            loss = -vae.bound(out.log_weights(settings.beta)).sum()
        elif settings.free_bits and model.training:
            kept = kl.mean(0).clamp(min=settings.free_bits).sum()
            loss = reconstruction + settings.beta * kept * len(images)
        else:
            loss = reconstruction + settings.beta * kl.sum()
        return {"loss": loss, "Reconstruction": reconstruction, "KL": kl.sum(), "count": len(images)}

    return objective


def adversarial(
    model: nn.Module,
    settings: TrainingSettings,
    own: VariationalSettings,
    lr_multiplier: Callable[[str], float] = lambda _name: 1.0,
) -> SeveralOptimizers:
    """Return the update of a VAE-GAN (Larsen et al. 2016, arXiv:1512.09300, algorithm 1).

    The reconstruction error is not that of pixels but of the discriminator's hidden features, which forgive a
    stroke that lies a pixel aside, and not a blur. With f the features, D the discriminator, x̃ a decoded
    posterior sample and x_p a decoded prior sample:

        encoder         β · KL + ½ Σ (f(x) − f(x̃))²
        decoder         γ · ½ Σ (f(x) − f(x̃))² − ½ (log D(x̃) + log D(x_p))
        discriminator   −log D(x) − ½ (log(1 − D(x̃)) + log(1 − D(x_p)))

    The decoder's is the non-saturating form. The features count as normal with variance 1, as in the paper:
    with the variance of the residuals, as for pixels, the KL grew from 16 to 51 nats on digits, and samples
    of the prior were less diverse. Each of the three networks has an optimizer of its own, because each sees
    other losses of the same pass.
    """

    def step(model: nn.Module, batch: tuple[Tensor, Tensor], optimizers: Mapping[str, Minimiser]) -> Sums:
        images, _ = batch
        count = len(images)
        loss = _adversarial_losses(model, images)
        optimizers["encoder"].add_gradient(
            own.beta * loss["KL"] + loss["Feature_matching"], count, retain_graph=True
        )
        optimizers["decoder"].add_gradient(
            own.gamma * loss["Feature_matching"] + loss["Generator"], count, retain_graph=True
        )
        optimizers["discriminator"].add_gradient(loss["Discriminator"], count)
        for minimiser in optimizers.values():
            minimiser.step()
        total = own.beta * loss["KL"] + loss["Feature_matching"] + loss["Generator"]
        return {"loss": total, **loss, "count": count}

    def rate(name: str) -> float:
        factor = DISCRIMINATOR_RATE if name.startswith("discriminator.") else 1.0
        return factor * lr_multiplier(name)

    parts = ("encoder", "decoder", "discriminator")
    return SeveralOptimizers(
        step, {part: Minimiser(model, settings, parts=(part,), lr_multiplier=rate) for part in parts}
    )


def _adversarial_losses(model: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the terms of `adversarial`'s losses and the pixels' `Reconstruction`, summed over the images."""
    out: vae.Output = model(images)
    decoded, sampled = out.logits[0].sigmoid(), model.decode(torch.randn_like(out.mu))
    real, features = model.discriminator(images)
    (fake, its_features), (drawn, _) = model.discriminator(decoded), model.discriminator(sampled)
    distance = 0.5 * (features.detach() - its_features).square().sum()
    return {
        "Reconstruction": -out.log_likelihood.sum(),
        "KL": vae.kl_per_unit(out.mu, out.logvar).sum(),
        "Feature_matching": distance,
        "Generator": 0.5 * (F.softplus(-fake) + F.softplus(-drawn)).sum(),
        "Discriminator": (F.softplus(-real) + 0.5 * (F.softplus(fake) + F.softplus(drawn))).sum(),
    }
