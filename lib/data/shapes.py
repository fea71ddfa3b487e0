"""Images of shapes that are made on the fly, with exact masks: for tests, and to begin without a download."""

import numpy as np
import torch

from lib.data.masks import Labelled, MaskedSplit, Pair, Reading
from lib.data.segmentation_sets import MASKED_SETS

HEIGHT, WIDTH = 64, 80
EXAMPLES = {"train": 320, "valid": 80, "test": 80}
MOST_SHAPES = 4
_SEED = 20150608  # always the same images, whatever --seed is
_NOISE = 0.06


def make(reading: Reading) -> Labelled:
    """Return images with one to four circles, squares and triangles on a ground of another colour.

    Colours, sizes, places and the noise are random; later shapes hide earlier ones.
    """
    scale = min(1.0, (reading.size or WIDTH) / WIDTH)
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    random = np.random.default_rng(_SEED)
    pairs: list[Pair] = []
    splits = {}
    for name, count in EXAMPLES.items():
        rows = tuple(range(len(pairs), len(pairs) + count))
        pairs += [_example(random, height, width) for _ in range(count)]
        splits[name] = rows
    names = tuple(f"shapes-{number}" for number in range(len(pairs)))
    return Labelled(
        {name: MaskedSplit(pairs, names, rows) for name, rows in splits.items()},
        MASKED_SETS["shapes"].classes,
    )


def _example(random: np.random.Generator, height: int, width: int) -> Pair:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground = random.uniform(0, 1, 3)
    slope = random.uniform(-0.2, 0.2, (2, 3))
    pixels = ground + slope[0] * (y / height)[..., None] + slope[1] * (x / width)[..., None]
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.integers(1, MOST_SHAPES + 1)):
        label = int(random.integers(1, 4))
        inside = _inside(label, random, y, x)
        colour = random.uniform(0, 1, 3)
        while np.abs(colour - ground).max() < 0.25:  # or else it could not be seen
            colour = random.uniform(0, 1, 3)
        pixels[inside] = colour
        mask[inside] = label
    noisy = np.clip(pixels + random.normal(0, _NOISE, pixels.shape), 0, 1)
    image = torch.from_numpy((noisy * 255).round().astype(np.uint8)).permute(2, 0, 1).contiguous()
    return image, torch.from_numpy(mask)


def _inside(label: int, random: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) of a circle (label 1), an upright square (2) or a triangle (3)."""
    height, width = y.shape
    radius = random.uniform(0.12, 0.28) * height
    down, right = y - random.uniform(0.15, 0.85) * height, x - random.uniform(0.15, 0.85) * width
    if label == 1:
        return down**2 + right**2 <= radius**2
    if label == 2:
        side = 0.9 * radius
        return (np.abs(down) <= side) & (np.abs(right) <= side)
    # Upright: as wide as it is far below its tip.
    return (down <= radius) & (np.abs(right) <= 0.6 * (down + radius))
