"""The game of removal: the score of an image in which some pixels show something else; and grids of cells.

Measures of faithfulness ask how the score changes if parts of the image are taken away. They do so only
through a `Game`, so that one measure serves any network, and values that several measures need are computed
once.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Function from masks (N, H, W) bool of the pixels that are shown to the scores (N,) float64.
Game = Callable[[Tensor], Tensor]


@dataclass
class Removal:
    """The game of one image: a pixel that is not shown has the baseline's value, or that of its surroundings.

    Attributes:
        score: function from images (N, C, H, W) to scores (N,), or (T, N) of T targets.
        image: (C, H, W), in whatever scale `score` takes.
        baseline: (C, H, W), likewise; None: what is not shown is in-painted from what is.
        batch_size: number of images that are scored at once. It must not be measured: rounding errors depend
            on the batch, and the same masks must have the same scores whenever they are asked for.
        evaluations: number of images scored so far.
    """

    score: Callable[[Tensor], Tensor]
    image: Tensor
    baseline: Tensor | None
    batch_size: int = 64
    evaluations: int = 0

    @torch.no_grad()
    def __call__(self, shown: Tensor) -> Tensor:
        """Return the scores, (N,) or (T, N) float64 on the CPU, for masks (N, H, W) bool."""
        self.evaluations += len(shown)
        parts = []
        for masks in shown.split(self.batch_size):
            masks = masks[:, None].to(self.image.device)
            hidden = inpainted(self.image, masks) if self.baseline is None else self.baseline
            mixed = torch.where(masks, self.image, hidden)
            if mixed.device.type == "cpu":
                # With channels last, convolutions on a CPU are faster.
                mixed = mixed.contiguous(memory_format=torch.channels_last)
            parts.append(self.score(mixed).cpu().double())
        return torch.cat(parts, dim=-1)


class Remembered:
    """A game that answers the same question only once: methods whose maps are one ask it several times.

    A question is all masks of a call and not each mask, because rounding errors depend on the batch.
    """

    def __init__(self, game: Game) -> None:
        self._game = game
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, shown: Tensor) -> Tensor:
        """Return the scores, (N,) or (T, N), for masks (N, H, W) bool."""
        question = hashlib.sha256(shown.contiguous().numpy().tobytes()).digest()
        if question not in self._known:
            self._known[question] = self._game(shown)
        return self._known[question]


def inpainted(image: Tensor, shown: Tensor) -> Tensor:
    """Return images (N, C, H, W) in which holes have the colours of what surrounds them.

    By pull and push (Gortler et al. 1996, "The Lumigraph", § 3.4.2): the image is halved again and again,
    each time as the mean of what is shown, until no hole is left; on the way back holes are filled from it.

    Args:
        image: (C, H, W).
        shown: masks (N, 1, H, W) bool; where nothing is shown, the image's mean colour is.
    """
    weights = shown.to(image.dtype)
    colours = image * weights
    levels = [(colours, weights)]
    while max(weights.shape[-2:]) > 1:
        colours, weights = (
            F.avg_pool2d(each, 2, ceil_mode=True, count_include_pad=False) for each in (colours, weights)
        )
        levels.append((colours, weights))
    found = image.mean((1, 2))[:, None, None].expand(len(shown), -1, 1, 1)
    for colours, weights in reversed(levels):
        found = F.interpolate(found, size=colours.shape[-2:], mode="bilinear", align_corners=False)
        found = torch.where(weights > 0, colours / weights.clamp(min=1e-12), found)
    return found


def grid(size: tuple[int, int], across: int) -> Tensor:
    """Return the number of the cell (H, W) of each pixel, in a grid of `across` × `across` equal cells.

    An image with fewer pixels than that on a side has a cell for each row and column of pixels.
    """
    rows, columns = (torch.arange(side) * min(across, side) // side for side in size)
    return min(across, size[1]) * rows[:, None] + columns


def cell_sums(values: Tensor, cells: Tensor) -> Tensor:
    """Return the sum of a map (H, W) over each cell, (n,) float64."""
    count = int(cells.max()) + 1
    return torch.bincount(cells.flatten(), values.double().flatten(), minlength=count)


def shown_without(removed: Tensor, cells: Tensor) -> Tensor:
    """Return the masks (N, H, W) of the pixels shown if the cells of `removed` (N, n) bool are not."""
    return ~removed[:, cells.flatten()].view(len(removed), *cells.shape)


def random_cells(count: int, sizes: list[int], samples: int, seed: int) -> Tensor:
    """Draw `samples` sets of cells of each size, (len(sizes), samples, count) bool."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(len(sizes), samples, count, generator=generator).argsort(-1).argsort(-1)
    return places < torch.tensor(sizes)[:, None, None]


def random_squares(size: tuple[int, int], samples: int, seed: int) -> Tensor:
    """Draw squares of an eighth to a half of the shorter side, (samples, H, W) bool: true inside."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    share, top, left = torch.rand(3, samples, generator=generator)
    sides = ((0.125 + 0.375 * share) * min(size)).round().clamp(min=1)
    first_row, first_column = (top * (height - sides + 1)).floor(), (left * (width - sides + 1)).floor()

    def inside(places: Tensor, first: Tensor) -> Tensor:
        return (places >= first[:, None]) & (places < (first + sides)[:, None])

    rows = inside(torch.arange(height), first_row)
    return rows[:, :, None] & inside(torch.arange(width), first_column)[:, None, :]
