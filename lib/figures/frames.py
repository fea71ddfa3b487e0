"""Maps drawn where they belong in a photograph, of which a network saw a part."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lib.figures import style

# Left, top, right, bottom in pixels; see `lib.data.fitting.Box`.
Box = tuple[float, float, float, float]

# Panels on a line, with the image: 1,150 pixels at 100 dpi, as wide as a page shows without scaling.
COLUMNS = 5

# Standard deviation of the smoothing of grainy maps, as a share of the longest side; below this many pixels
# there is nothing to smooth.
SMOOTHING = 0.02
_LEAST_SMOOTHING = 1.0


def whole(pixels: np.ndarray) -> Box:
    """Return the box of a map that covers a picture (H, W, …)."""
    return 0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0])


def onto(values: np.ndarray, shape: Sequence[int], box: Box, *, nearest: bool = False) -> np.ndarray:
    """Return a map (h, w) drawn into its box in a picture of `shape` (H, W), with NaN outside of the box.

    Args:
        values: the map.
        shape: height and width of the picture.
        box: where the map lies in it.
        nearest: whether a pixel of the picture gets the value of the nearest pixel of the map, as it must for
            numbers of parts; otherwise values are interpolated linearly.
    """
    if values.shape == tuple(shape[:2]) and box == (0.0, 0.0, float(shape[1]), float(shape[0])):
        return values
    result = np.asarray(values, dtype=np.float64)
    for axis, (first, last) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        cells = result.shape[axis]
        middles = np.arange(shape[axis]) + 0.5
        at = (middles - first) * cells / (last - first) - 0.5
        inside = (middles > first) & (middles < last)
        at = at.clip(0, cells - 1)
        if nearest:
            taken = result.take(at.round().astype(int), axis)
        else:
            before = np.floor(at).astype(int)
            share = np.expand_dims(at - before, 1 - axis)
            after = np.minimum(before + 1, cells - 1)
            taken = (1 - share) * result.take(before, axis) + share * result.take(after, axis)
        result = np.where(np.expand_dims(inside, 1 - axis), taken, np.nan)
    return result


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return a map (h, w) smoothed for the eye, by a Gaussian that keeps its sum; a small map is unchanged.

    Gradients of neighbouring pixels differ so much that, drawn as they are, they look like dust.
    """
    sigma = SMOOTHING * max(values.shape)
    if sigma < _LEAST_SMOOTHING:
        return values
    from scipy.ndimage import gaussian_filter  # imported here because it is slow to import

    return gaussian_filter(values, sigma, mode="reflect")


def faded(pixels: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 in light greys, (H, W, 3) in [0, 1]: the part without a map."""
    return 0.6 + 0.4 * style.grey(pixels)


def with_surroundings(colours: np.ndarray, mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) where `mask` (H, W) says so, and the faded picture elsewhere."""
    return colours if mask.all() else np.where(mask[..., None], colours, faded(pixels))


def outline(axes: Axes, pixels: np.ndarray, box: Box) -> None:
    """Draw a thin rectangle around a box, unless it holds the whole picture."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    if (right - left) * (bottom - top) > 0.995 * width * height:
        return
    for colour, line in (("black", 1.8), ("white", 0.8)):  # visible over any picture
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(
            Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=line)
        )
