"""Sheets of explained images: panels of the images and of the maps that explain their classes."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from lib.figures import style
from lib.runtime.files import replaced

# Signed maps are divided by this percentile of their magnitudes: divided by the maximum, a few very strong
# pixels would make all others look white.
SIGNED_PERCENTILE = 99.5

CELL = 2.1  # inches, the side of a panel
_LINE = 0.16  # inches, of a title
_TITLE_CHARACTERS = 33
_BAR = 0.13  # inches, the width of a colour bar
_ALPHA = 0.6  # of a heat map over its photograph


class Tile(NamedTuple):
    """One panel of a sheet.

    Attributes:
        title: lines of the title; long lines are wrapped.
        pixels: (H, W, 3) uint8, the image as the network saw it.
        map: (H, W) the map to draw; None to draw only the image.
        signed: whether the map has both signs and is drawn alone; otherwise it is a heat map over the image.
    """

    title: Sequence[str]
    pixels: np.ndarray
    map: np.ndarray | None = None
    signed: bool = False


def sheet(rows: Sequence[Sequence[Tile]]) -> Figure:
    """Return a figure of rows of tiles, with a colour bar for each kind of map in it.

    Each map is divided by its own maximum, or, if it is signed, by a high percentile of its magnitudes; zero
    stays zero. A map that is zero everywhere is labelled as such.
    """
    columns = max(map(len, rows))
    tiles = [tile for row in rows for tile in row]
    heights = [CELL + _LINE * max(_count_lines(tile) for tile in row) + 0.2 for row in rows]
    kinds = [signed for signed in (False, True) if any(_is_map(tile, signed) for tile in tiles)]
    width = columns * (CELL + 0.08) + 0.65 * len(kinds)
    figure = Figure(figsize=(width, sum(heights)))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for line, row in zip(axes, rows, strict=True):
        for place, tile in itertools.zip_longest(line, row):
            place.set_axis_off() if tile is None else _draw(place, tile)
    for signed in kinds:
        _add_bar(figure, axes, signed, min(sum(heights), 2 * CELL))
    return figure


def _is_map(tile: Tile, signed: bool) -> bool:
    return tile.map is not None and tile.signed == signed


def _title(tile: Tile) -> str:
    return "\n".join(textwrap.fill(line, _TITLE_CHARACTERS) for line in tile.title)


def _count_lines(tile: Tile) -> int:
    return _title(tile).count("\n") + 1


def _draw(axes: Axes, tile: Tile) -> None:
    axes.set_title(style.literal(_title(tile)), fontsize=8, pad=3)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=style.GRID)
    if tile.map is None:
        axes.imshow(tile.pixels)
    elif not np.any(tile.map):
        axes.imshow(style.grey(tile.pixels) / 2 + 0.5)
        axes.text(0.5, 0.5, "zero everywhere", ha="center", va="center", fontsize=9, transform=axes.transAxes)
    elif tile.signed:
        axes.imshow(signed_colours(tile.map))
    else:
        axes.imshow(heat_colours(tile.map, tile.pixels))


def heat_colours(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Blend a heat map (H, W), not all zero, with its image (H, W, 3) uint8: (H, W, 3) in [0, 1]."""
    heat = matplotlib.colormaps[_HEAT](values / values.max())[..., :3]
    # The image is reduced to greys of 0.15 to 0.85, so that a value has nearly the same colour everywhere.
    return _ALPHA * heat + (1 - _ALPHA) * (0.15 + 0.7 * style.grey(pixels))


def signed_colours(values: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3) in [0, 1] of a signed map (H, W), not all zero; zero is white."""
    magnitudes = np.abs(values)
    limit = np.percentile(magnitudes, SIGNED_PERCENTILE) or magnitudes.max()
    return style.SIGNED(0.5 + 0.5 * np.clip(values / limit, -1, 1))[..., :3]


_HEAT = "inferno"


def _heat_bar() -> Colormap:
    """Return the colour map of a heat map blended with a middle grey."""
    heat = matplotlib.colormaps[_HEAT](np.linspace(0, 1, 256))[:, :3]
    return ListedColormap(_ALPHA * heat + (1 - _ALPHA) * 0.5)


def _add_bar(figure: Figure, axes: np.ndarray, signed: bool, height: float) -> None:
    ticks: list[float]
    if signed:
        scale = ScalarMappable(Normalize(-1, 1), style.SIGNED)
        label, ticks = f"share of the panel's {SIGNED_PERCENTILE:g}th percentile of magnitude", [-1, 0, 1]
    else:
        scale = ScalarMappable(Normalize(0, 1), _heat_bar())
        label, ticks = "share of the panel's maximum", [0, 0.5, 1]
    bar = figure.colorbar(
        scale,
        ax=axes.ravel().tolist(),
        ticks=ticks,
        shrink=min(1.0, height / figure.get_figheight()),
        aspect=height / _BAR,
        anchor=(0, 1) if len(axes) > 2 else (0, 0.5),
        fraction=_BAR / figure.get_figwidth(),
        pad=0.1 / figure.get_figwidth(),
    )
    bar.set_label(textwrap.fill(label, round(height * 14)), fontsize=8)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)


def save_animation(figures: Sequence[Figure], path: Path, milliseconds: int = 700) -> Path:
    """Write figures as a looping GIF, atomically; the last frame stays twice as long.

    Raises:
        RunFailed: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image, ImageOps

    frames = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    # Figures with longer titles are larger: pad all frames to one size.
    size = tuple(max(lengths) for lengths in zip(*(frame.size for frame in frames), strict=True))
    frames = [ImageOps.pad(frame, size, color="white", centering=(0, 1)) for frame in frames]
    with replaced(path) as file:
        frames[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=frames[1:],
            duration=[milliseconds] * (len(frames) - 1) + [2 * milliseconds],
            loop=0,
        )
    return path
