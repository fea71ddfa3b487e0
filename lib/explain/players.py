"""The players of a game about an image: patches, superpixels, or the regions of a label image."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import UserError

MOST_PLAYERS = 400


class Players(NamedTuple):
    """Which part of an image each player is.

    Attributes:
        map: (H, W) long, the player that each pixel belongs to, from 0.
        note: what is to be said about them; empty if nothing is.
    """

    map: Tensor
    note: str = ""

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.map.max()) + 1

    @property
    def positions(self) -> Tensor:
        """Their centroids (n, 2), row and column, float64, in units of the spacing of as many squares."""
        height, width = self.map.shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        players = self.map.flatten()
        sizes = torch.bincount(players).double()
        sums = [torch.bincount(players, where.flatten().double()) for where in (rows, columns)]
        return torch.stack(sums, dim=1) / sizes[:, None] / (height * width / self.count) ** 0.5


def patches(size: int, side: int) -> Players:
    """Return squares of `side` pixels of an image of `size`; the last row and column may be smaller.

    Raises:
        UserError: a square is larger than the image, or there would be too many.
    """
    if side > size:
        raise UserError(
            f"a patch of {side} px is larger than the image, which has {size}: -lp {size} or less"
        )
    across = -(-size // side)
    if across**2 > MOST_PLAYERS:
        most = int(MOST_PLAYERS**0.5)
        raise UserError(
            f"-lp {side} makes {across**2} players, more than {MOST_PLAYERS}: -lp {-(-size // most)} or more"
        )
    step = torch.arange(size) // side
    rest = size % side
    note = f"{side} px do not divide {size}: the last row and column have {rest} px" if rest else ""
    return Players(across * step[:, None] + step, note)


def superpixels(pixels: Tensor, segments: int) -> Players:
    """Return about so many superpixels of an image (C, H, W) in [0, 1], by SLIC (Achanta et al. 2012)."""
    from skimage.segmentation import slic

    colours = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    labels = slic(colours.permute(1, 2, 0).cpu().numpy().astype(np.float64), segments, start_label=0)
    found = _numbered(labels, f"--segments {segments}", "fewer segments")
    if found.count != segments:
        return found._replace(note=f"SLIC made {found.count} superpixels where {segments} were asked for")
    return found


def from_labels(values: np.ndarray, size: int, path: str | Path) -> Players:
    """Return a player for each value that a label image has, in increasing order of the values.

    Args:
        values: (H, W) or (H, W, C), grey values, palette entries or colours.
        size: side of the image that the network sees, which is the label image's too.
        path: the file that the values are from, for a complaint.

    Raises:
        UserError: another size, or too many values.
    """
    if values.shape[:2] != (size, size):
        height, width = values.shape[:2]
        raise UserError(f"the label image {path} has {width}×{height} pixels; the network sees {size}×{size}")
    flat = values.reshape(size * size, -1)
    labels = np.unique(flat, axis=0, return_inverse=True)[1].reshape(size, size)
    return _numbered(labels, f"the label image {path}", "fewer labels")


def _numbered(labels: np.ndarray, source: str, advice: str) -> Players:
    values, numbers = np.unique(labels, return_inverse=True)
    if len(values) > MOST_PLAYERS:
        raise UserError(f"{source} makes {len(values)} players, more than {MOST_PLAYERS}: {advice}")
    return Players(torch.from_numpy(numbers.reshape(labels.shape)).long())
