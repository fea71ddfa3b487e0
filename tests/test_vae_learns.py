"""What trained autoencoders can do: denoise, obey a class, walk between attributes, stay diverse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VAE_SCRIPT, call
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression

from lib import models
from lib.data import images
from lib.evaluation import reconstruction as evaluation
from lib.models.vae import Vae
from lib.runtime import checkpoint
from lib.tasks.reconstruction_output import draw

DIGITS = ("--dataset", "digits", "--hidden", "128", "--depth", "2", "--latent", "10")


def train(*flags, folder: Path) -> Path:
    """Train by the script in `folder`, and return the best checkpoint."""
    done = call(VAE_SCRIPT, *flags, folder=folder)
    assert done.status == 0, done.stderr
    return folder / done.run().events["BEST"][0]["file"]


def network(path: Path) -> Vae:
    saved = checkpoint.load(path)
    model = models.build(saved["model"]["name"], **saved["model"]["config"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()


@pytest.mark.long
def test_a_denoising_one_reconstructs_noisy_images_better(tmp_path):
    errors = {}
    for name in ("vae", "dvae"):
        best = train(*DIGITS, "--model", name, "--max-epoch", "40", folder=tmp_path)
        flags = ("--eval-only", "--restore-file", best, "--noise", "gaussian", "--samples", "60")
        done = call(VAE_SCRIPT, *flags, folder=tmp_path)
        errors[name] = float(done.run().events["EVAL"][0]["Noisy_MSE"])
    assert errors["dvae"] < 0.9 * errors["vae"]


@pytest.mark.long
def test_a_conditional_one_draws_the_class_that_it_is_told(tmp_path):
    model = network(train(*DIGITS, "--model", "cvae", "--max-epoch", "100", folder=tmp_path))
    data = images.load("digits", "data")
    classifier = LogisticRegression(max_iter=2000).fit(data.train.images.flatten(1), data.train.labels)
    assert classifier.score(data.valid.images.flatten(1), data.valid.labels) > 0.94
    labels = torch.arange(500) % 10
    made = draw(model, 500, 0, labels)
    assert classifier.score(made.flatten(1), labels) >= 0.95


@pytest.mark.long
def test_a_vae_gan_does_not_collapse_in_20_epochs_and_is_sharper_than_a_vae(tmp_path):
    flags = ("--net", "linear", "--max-epoch", "20", "--batch-size", "32")
    real = images.load("digits", "data").valid.images[:300]
    made = {
        name: draw(network(train(*DIGITS, "--model", name, *flags, folder=tmp_path)), 300, 0)
        for name in ("vae", "vae-gan")
    }
    assert evaluation.diversity(made["vae-gan"]) > 0.5 * evaluation.diversity(real)
    assert evaluation.energy(made["vae-gan"]) > 1.1 * evaluation.energy(made["vae"])


def write_attributes(root: Path) -> Path:
    """Write faces of circles with and without a dark bar, of many places and greys."""
    random = np.random.default_rng(0)
    for name in ("glasses", "noglasses"):
        (root / name).mkdir(parents=True)
        for number in range(60):
            image = Image.new("L", (16, 16), int(random.integers(0, 60)))
            pencil = ImageDraw.Draw(image)
            x, y = random.integers(-1, 2, 2)
            pencil.ellipse((3 + x, 2 + y, 12 + x, 14 + y), fill=int(random.integers(170, 256)))
            if name == "glasses":
                pencil.rectangle((4 + x, 5 + y, 11 + x, 7 + y), fill=20)
            image.save(root / name / f"subject{number:02d}.png")
    return root


@pytest.mark.long
def test_a_linear_probe_moves_monotonically_along_the_walk_between_two_attributes(tmp_path):
    from lib.data import faces
    from lib.data.preprocessing import Preprocessing
    from lib.tasks import latent_images
    from lib.tasks.latent_images import Endpoint

    folder = write_attributes(tmp_path / "faces")
    flags = ("--dataset", "faces", "--data-dir", folder, "--size", "16", "--loss", "mse", "--latent", "8")
    model = network(train(*flags, "--hidden", "128", "--max-epoch", "60", folder=tmp_path))
    found = faces.find(folder)
    how = Preprocessing(16, 1, (0.0,), (1.0,), resize=16)
    pixels = torch.stack([how.read(path) for path in found.splits["train"].paths])
    labels = np.array(found.splits["train"].labels)
    z = latent_images.encode(model, pixels)
    ends = [Endpoint(name, z[labels == k].mean(0, keepdim=True), pixels[:0]) for k, name in enumerate("ab")]
    walk = latent_images.interpolate(model, *ends, np.linspace(1, 0, 9).tolist())[0]
    probe = LogisticRegression(max_iter=5000).fit(pixels.flatten(1), labels)
    answers = probe.decision_function(walk.flatten(1).numpy())
    assert (np.diff(answers) > 0).all()
    assert answers[0] < 0 < answers[-1]
