"""A generator and a discriminator of points in the plane, small enough to be trained hundreds of times.

points_gan.py FOLDER kill N: train it in a process of its own, which ends itself by SIGKILL before update N.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from training import Before, Outcome, fit, make_settings

from lib.data.batches import InOrder, TensorBatches
from lib.training.objectives import Sums
from lib.training.update import Minimiser, SeveralOptimizers

PARTS = ("generator", "discriminator")
LATENT = 3
CENTRE = torch.tensor([2.0, -1.0])


class Gan(nn.Module):
    """With batch normalisation and dropout, which could spoil a resume; `plain` has neither."""

    def __init__(self, plain: bool = False):
        super().__init__()
        norm = nn.Identity() if plain else nn.BatchNorm1d(8)
        dropout = nn.Dropout(0.0 if plain else 0.2)
        # Batch normalisation takes a bias away again: its gradient would be rounding errors alone.
        self.generator = nn.Sequential(nn.Linear(LATENT, 8, bias=plain), norm, nn.Tanh(), nn.Linear(8, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), dropout, nn.Linear(8, 1))

    def forward(self, latent):
        return self.generator(latent)


def make_gan(plain: bool = False) -> Gan:
    torch.manual_seed(5)
    return Gan(plain)


def losses(model: nn.Module, real, latent, half: str):
    """The non-saturating loss of one of the two, summed over the batch."""
    fake = model.generator(latent)
    if half == "generator":
        return F.softplus(-model.discriminator(fake)).sum()
    return (F.softplus(-model.discriminator(real)) + F.softplus(model.discriminator(fake.detach()))).sum()


def alternate(model: nn.Module, batch: Any, optimizers) -> Sums:
    """One step of the discriminator, then one of the generator; a batch may bring its latent vectors."""
    real, *rest = batch
    latent = rest[0] if rest else torch.randn(len(real), LATENT)
    loss_d = losses(model, real, latent, "discriminator")
    optimizers["discriminator"].minimise(loss_d, len(real))
    loss_g = losses(model, real, latent, "generator")
    optimizers["generator"].minimise(loss_g, len(real))
    return {"loss": loss_g, "Discriminator_loss": loss_d, "count": len(real)}


def distance(model: nn.Module, batch: Any) -> Sums:
    """Validation: how far generated points are from the middle of the real ones."""
    points = model.generator(torch.randn(len(batch[0]), LATENT))
    return {"loss": (points - CENTRE).square().sum(), "count": len(points)}


def make_points(latent: bool = False, batch_size: int = 6) -> tuple[TensorBatches, InOrder]:
    generator = torch.Generator().manual_seed(0)
    real = CENTRE + 0.3 * torch.randn(40, 2, generator=generator)
    drawn = (torch.randn(28, LATENT, generator=generator),) if latent else ()
    return TensorBatches(real[:28], *drawn, batch_size=batch_size, seed=3), InOrder(real[28:], batch_size=5)


def make_update(model: Gan, function=alternate, **changes) -> SeveralOptimizers:
    settings = make_settings(**changes)
    rates = {"generator": 1.0, "discriminator": 0.5}
    return SeveralOptimizers(
        function,
        {
            part: Minimiser(model, settings, parts=(part,), lr_multiplier=lambda _, rate=rates[part]: rate)
            for part in PARTS
        },
    )


def fit_gan(folder: Path, *, model=None, update=None, function=alternate, batches=None, **changes) -> Outcome:
    """Train a GAN into `folder`; other arguments are those of `training.fit` and `Settings`."""
    around, resume = changes.pop("around", None), changes.pop("resume", False)
    model = model or make_gan()
    return fit(
        folder,
        around=around,
        resume=resume,
        objective=distance,
        score=lambda metrics: (-metrics["loss"],),
        model=model,
        batches=batches or make_points(),
        update=update or make_update(model, function, **changes),
        **changes,
    )


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, _kill: str, at: str) -> None:
    torch.set_num_threads(1)
    fit_gan(Path(folder), ema=0.9, around=lambda batches: Before(batches, int(at), kill_this_process))


if __name__ == "__main__":
    main(*sys.argv[1:])
