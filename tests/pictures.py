"""Folders of small images for tests: classes that are told apart by their colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}


def write_image(
    path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (20, 16)
) -> None:
    """Write an image of noise about a colour; `size` is (width, height)."""
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(path)


def write_folder(root: Path, images: int = 12, classes: Mapping[str, tuple[int, int, int]] = COLOURS) -> Path:
    """Write so many images of each class as `root/CLASS/N.png`, and return `root`."""
    for number, (name, colour) in enumerate(classes.items()):
        for index in range(images):
            write_image(root / name / f"{index:03d}.png", colour, seed=number * 1000 + index)
    return root
