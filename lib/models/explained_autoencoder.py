"""Autoencoders as networks to explain: their outputs are the latent means, or the reconstruction at z = μ."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib import models
from lib.data.preprocessing import Preprocessing
from lib.models.network import Network
from lib.models.vae import Vae
from lib.runtime import checkpoint
from lib.runtime.errors import UserError

TASK = "reconstruction"


class LatentMeans(nn.Module):
    """The encoder of an autoencoder, without the spread of the posterior: images to μ."""

    def __init__(self, model: Vae) -> None:
        super().__init__()
        self.encoder, self.latent = model.encoder, model.latent

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to latent means (B, L)."""
        return self.encoder(images, images.new_zeros(len(images), 0))[:, : self.latent]


class Reconstruction(LatentMeans):
    """An autoencoder without noise: images to the reconstruction of z = μ."""

    generators = ("decoder",)  # its maps are of the reconstruction; see `lib.explain.activations`

    def __init__(self, model: Vae) -> None:
        super().__init__(model)
        self.decoder = model.decoder

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to pixels in [0, 1], (B, C, H, W)."""
        return self.decoder(super().forward(images)).sigmoid()


def load(file: str | Path, device: torch.device | str = "cpu", *, reconstructs: bool) -> Network:
    """Load the autoencoder in a checkpoint as a network whose output is μ, or the reconstruction.

    Raises:
        UserError: the file is missing, damaged, of another task, or of a network that is told the class.
    """
    saved = checkpoint.load(file, task=TASK)
    if "model" not in saved:
        raise UserError(f"{file} is a bare state_dict, which does not say of which autoencoder it is")
    network, how = saved["model"], saved.get("preprocessing")
    anything: Any = how  # a file may hold anything, and `of` refuses whatever is no preprocessing
    preprocessing = Preprocessing.of(anything, file)
    model = models.build(network["name"], **network["config"])
    if not isinstance(model, Vae):
        raise UserError(f"{file} holds {network['name']}, which is no autoencoder")
    if model.classes:
        raise UserError(f"{file}: cvae must be told the class of each image, which the images do not say")
    checkpoint.restore_weights(model, saved["state_dict"], file)
    epoch = saved.get("epochs")
    return Network(
        (Reconstruction if reconstructs else LatentMeans)(model).to(device),
        (),
        preprocessing,
        network["name"],
        epoch if isinstance(epoch, int) else None,
    )
