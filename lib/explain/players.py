"""The players of the game of an image: patches, superpixels, or the regions of a label image."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import UserError

MOST_PLAYERS = 400


@dataclass(frozen=True)
class Players:
    """A partition of an image into players.

    Attributes:
        map: (H, W) int64, the player of each pixel, counted from 0.
        note: a remark for the user; empty if there is none.
    """

    map: Tensor
    note: str = ""

    @property
    def count(self) -> int:
        """The number of players n."""
        return int(self.map.max()) + 1

    @property
    def positions(self) -> Tensor:
        """The players' centroids (n, 2), row and column, float64.

        The unit is the spacing of n squares that would fill the image, √(H · W / n) pixels.
        """
        height, width = self.map.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        players = self.map.flatten()
        sizes = torch.bincount(players).double()
        sums = [torch.bincount(players, where.flatten().double()) for where in (rows, columns)]
        return torch.stack(sums, dim=1) / sizes[:, None] / (height * width / self.count) ** 0.5


def patches(size: int | tuple[int, int], side: int) -> Players:
    """Return squares of `side` × `side` pixels as the players of an image of `size`, (H, W) or its side.

    The squares in the last row and column are smaller if `side` does not divide its height or width.

    Raises:
        UserError: a square is larger than the image, or there would be too many.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    longest = max(height, width)
    if side > longest:
        raise UserError(
            f"a patch of {side} px is larger than the image, which has {longest}: -lp {longest} or less"
        )
    down, across = -(-height // side), -(-width // side)
    if down * across > MOST_PLAYERS:
        enough = next(
            each for each in range(side, longest + 1) if _count(height, width, each) <= MOST_PLAYERS
        )
        raise UserError(
            f"-lp {side} makes {down * across} players, more than {MOST_PLAYERS}: -lp {enough} or more"
        )
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    rests = [length % side for length in dict.fromkeys((height, width))]
    note = ""
    if any(rests):
        sides = f"{width}" if height == width else f"{width}×{height}"
        last = " and ".join(f"{rest} px" for rest in dict.fromkeys(filter(None, rests)))
        note = f"{side} px do not divide {sides}: the last row and column have {last}"
    return Players(across * rows[:, None] + columns, note)


def _count(height: int, width: int, side: int) -> int:
    return -(-height // side) * -(-width // side)


def superpixels(pixels: Tensor, segments: int) -> Players:
    """Return about `segments` superpixels of an image (C, H, W) in [0, 1], by SLIC (Achanta et al. 2012)."""
    from skimage.segmentation import slic

    colours = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    labels = slic(colours.permute(1, 2, 0).cpu().numpy().astype(np.float64), segments, start_label=0)
    found = _numbered(labels, f"--segments {segments}", "fewer segments")
    if found.count != segments:
        return replace(found, note=f"SLIC made {found.count} superpixels where {segments} were asked for")
    return found


def from_labels(values: np.ndarray, size: int | tuple[int, int], path: str | Path) -> Players:
    """Return one player for each distinct value of a label image, in increasing order of the values.

    Args:
        values: (H, W) or (H, W, C), grey values, palette entries or colours.
        size: (H, W) of the network's input, or its side, which the label image must have, too.
        path: file of the label image, for error messages.

    Raises:
        UserError: the label image has another size, or too many values.
    """
    seen = size if isinstance(size, tuple) else (size, size)
    if values.shape[:2] != seen:
        height, width = values.shape[:2]
        raise UserError(
            f"the label image {path} has {width}×{height} pixels; the network sees {seen[1]}×{seen[0]}"
        )
    flat = values.reshape(seen[0] * seen[1], -1)
    labels = np.unique(flat, axis=0, return_inverse=True)[1].reshape(seen)
    return _numbered(labels, f"the label image {path}", "fewer labels")


def _numbered(labels: np.ndarray, source: str, advice: str) -> Players:
    """Return the players of `labels` (H, W), numbered from 0 without gaps."""
    values, numbers = np.unique(labels, return_inverse=True)
    if len(values) > MOST_PLAYERS:
        raise UserError(f"{source} makes {len(values)} players, more than {MOST_PLAYERS}: {advice}")
    return Players(torch.from_numpy(numbers.reshape(labels.shape)).long())
