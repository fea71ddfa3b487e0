"""What an autoencoder writes: latent means of images as an .npz file, and images that it makes up."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.images import ImageData
from lib.data.preprocessing import warn_of_negatives
from lib.models import layers
from lib.models.vae import Vae
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.runtime.files import writable_file, writable_folder, write_atomically
from lib.runtime.settings import Settings
from lib.training.run import TrainingRun

IMAGES_AT_ONCE = 250


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """The flags of `--predict-only`."""

    input: list[str] | None
    invert: bool
    out_file: str | None

    def path(self) -> Path:
        """Return the file to write.

        Raises:
            UserError: there is none, or it has another suffix or cannot be written.
        """
        if not self.out_file or not self.out_file.endswith(".npz"):
            raise UserError("--predict-only writes latent means as arrays: give --out-file FILE.npz")
        return writable_file(self.out_file)


@dataclass(frozen=True)
class SampleSettings(Settings):
    """The flags of `--sample`."""

    sample: int
    seed: int
    out_dir: str


def predict(run: TrainingRun, model: Vae, data: ImageData, settings: PredictionSettings) -> None:
    """Write `mu` and `logvar` (N, L) of each validation image, or of each `--input` file, as .npz.

    Beside them stand `names` (N,) and, for validation images, `labels` (N,) and the names of the `classes`.
    """
    path = settings.path()
    names: Sequence[str | int]
    batches: Iterable[tuple[Tensor, Tensor | None]]
    if settings.input:
        names, batches = settings.input, _files(run, data, settings)
    else:
        names = data.valid.names or range(len(data.valid.labels))
        batches = data.valid.in_order(distributed_over_ranks=False)
    found: list[tuple[Tensor, Tensor]] = []
    with layers.evaluating(model), torch.no_grad(), distributed.autocast(run.device, run.settings.amp):
        for images, labels in batches:
            mean, log_variance = model.encode(images, labels)
            found.append((mean.cpu(), log_variance.cpu()))
    if not distributed.is_main():
        return
    mu, logvar = (torch.cat(each).numpy() for each in zip(*found, strict=True))
    arrays = {"mu": mu, "logvar": logvar, "names": np.array([str(name) for name in names])}
    if not settings.input:
        arrays |= {"labels": data.valid.labels.cpu().numpy(), "classes": np.array(data.classes)}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_atomically(path, content.getvalue())
    run.log.event("PREDICT", Examples=len(mu), Latent=mu.shape[1], file=path)


def _files(
    run: TrainingRun, data: ImageData, settings: PredictionSettings
) -> Iterable[tuple[Tensor, Tensor | None]]:
    how, files = data.preprocessing, settings.input or []
    for first in range(0, len(files), IMAGES_AT_ONCE):
        some = files[first : first + IMAGES_AT_ONCE]
        pixels = torch.stack([how.read(name) for name in some])
        pixels = 1 - pixels if settings.invert else pixels
        looks = [how.looks_negative(image) for image in pixels]
        warn_of_negatives(
            [name for name, is_so in zip(some, looks, strict=True) if is_so], inverted=settings.invert
        )
        yield pixels.to(run.device), None


def sample(run: TrainingRun, model: Vae, settings: SampleSettings) -> None:
    """Write images decoded from the prior as `sample-NNNN.png`; of a CVAE, the classes take turns."""
    folder = writable_folder(settings.out_dir)
    if not distributed.is_main():
        return
    digits = max(4, len(str(settings.sample - 1)))
    for first in range(0, settings.sample, IMAGES_AT_ONCE):
        numbers = torch.arange(first, min(first + IMAGES_AT_ONCE, settings.sample))
        labels = numbers % model.classes if model.classes else None
        drawn = draw(model, len(numbers), settings.seed + first, labels)
        for number, image in zip(numbers.tolist(), drawn, strict=True):
            name = f"sample-{number:0{digits}d}"
            if labels is not None:
                name += f"-class-{number % model.classes}"
            write_atomically(folder / f"{name}.png", _png(image))
    run.log.event("SAMPLE", Images=settings.sample, folder=folder)


def draw(model: Vae, count: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """Return images decoded from latent vectors of the prior, (count, C, H, W), on the CPU.

    Args:
        model: the autoencoder.
        count: number of images.
        seed: seed of the latent vectors.
        labels: class of each image (count,), for a network that is told of it.
    """
    device = next(model.parameters()).device
    z = torch.randn(count, model.latent, generator=torch.Generator().manual_seed(seed)).to(device)
    with layers.evaluating(model), torch.no_grad():
        return model.decode(z, None if labels is None else labels.to(device)).cpu()


def _png(image: Tensor) -> bytes:
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG")
    return content.getvalue()
