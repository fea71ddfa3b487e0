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
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lib.figures import frames, style
from lib.figures.frames import Box
from lib.runtime.files import replaced

# Signed maps are divided by this percentile of their magnitudes: divided by the maximum, a few very strong
# pixels would make all others look white.
SIGNED_PERCENTILE = 99.5

CELL = 2.1  # inches, the width of a panel
_TALLEST = 1.6  # height of a row of panels, in widths
_LINE = 0.16  # inches, of a title
_TITLE_CHARACTERS = 33
_BAR = 0.18  # inches, the width of a colour bar
_ALPHA = 0.6  # of a heat map over its photograph


class Tile(NamedTuple):
    """One panel of a sheet.

    Attributes:
        title: lines of the title; long lines are wrapped.
        pixels: (H, W, 3) uint8, the photograph, or the part that the network saw.
        map: (h, w) the map to draw; None to draw only the image.
        signed: whether the map has both signs and is drawn alone; otherwise it is a heat map over the image.
        box: where the part that the network saw lies in `pixels`; None if it is all of it.
        limit: the value at the end of the scale of colours; None for the map's own.
        smooth: whether the map was smoothed for the eye.
        area: (h, w), bool, the area of the output that is explained, which is outlined; None for none.
    """

    title: Sequence[str]
    pixels: np.ndarray
    map: np.ndarray | None = None
    signed: bool = False
    box: Box | None = None
    limit: float | None = None
    smooth: bool = False
    area: np.ndarray | None = None


def sheet(rows: Sequence[Sequence[Tile | None]]) -> Figure:
    """Return a figure of rows of tiles, with a colour bar for each kind of map in it; None leaves a gap.

    Each map is divided by its `limit`, or else by its own maximum or, if it is signed, by a high percentile
    of its magnitudes; zero stays zero. A map that is zero everywhere is labelled as such.
    """
    columns = max(map(len, rows))
    tiles = [tile for row in rows for tile in row if tile is not None]
    heights = [_height(list(filter(None, row))) for row in rows]
    kinds = [signed for signed in (False, True) if any(_is_map(tile, signed) for tile in tiles)]
    width = columns * (CELL + 0.08) + 0.75 * len(kinds)
    figure = Figure(figsize=(width, sum(heights)))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for line, row in zip(axes, rows, strict=True):
        for place, tile in itertools.zip_longest(line, row):
            place.set_axis_off() if tile is None else _draw(place, tile)
    for signed in kinds:
        of_kind = [tile for tile in tiles if _is_map(tile, signed)]
        _add_bar(figure, axes, of_kind, min(sum(heights), 2 * CELL))
    return figure


def _height(row: Sequence[Tile]) -> float:
    """Return the height of a row of tiles in inches."""
    tallest = max(min(_TALLEST, tile.pixels.shape[0] / tile.pixels.shape[1]) for tile in row)
    return CELL * tallest + _LINE * max(_count_lines(tile) for tile in row) + 0.2


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
    axes.grid(visible=False)
    if tile.map is None:
        axes.imshow(tile.pixels)
        if tile.box:
            frames.outline(axes, tile.pixels, tile.box)
    elif not np.any(tile.map):
        axes.imshow(style.grey(tile.pixels) / 2 + 0.5)
        axes.text(0.5, 0.5, "zero everywhere", ha="center", va="center", fontsize=9, transform=axes.transAxes)
    else:
        axes.imshow(colours(tile))
    if tile.area is not None:
        _outline(axes, tile)


def _outline(axes: Axes, tile: Tile) -> None:
    """Draw the edge of a tile's area over its picture: a white line in a black one, seen on any colour."""
    assert tile.area is not None
    box = tile.box or frames.whole(tile.pixels)
    inside = frames.onto(tile.area, tile.pixels.shape, box, nearest=True)
    # With a frame of pixels outside, so that areas at the edge of the picture have an edge there, too.
    framed = np.pad(np.nan_to_num(inside.astype(float)), 1)
    rows, columns = (np.arange(-1, length - 1) for length in framed.shape)
    for width, colour in ((2.0, "black"), (0.9, "white")):
        axes.contour(columns, rows, framed, levels=[0.5], colors=colour, linewidths=width)
    axes.set(xlim=(-0.5, tile.pixels.shape[1] - 0.5), ylim=(tile.pixels.shape[0] - 0.5, -0.5))


def colours(tile: Tile) -> np.ndarray:
    """Return the colours (H, W, 3) in [0, 1] of a map, not all zero, drawn where it lies in its picture."""
    assert tile.map is not None
    limit = tile.limit or limit_of([tile.map], tile.signed)
    values = frames.onto(tile.map, tile.pixels.shape, tile.box or frames.whole(tile.pixels))
    inside = ~np.isnan(values)
    values = np.where(inside, values, 0.0)
    drawn = signed_colours(values, limit) if tile.signed else heat_colours(values, tile.pixels, limit)
    return frames.with_surroundings(drawn, inside, tile.pixels)


def limit_of(maps: Sequence[np.ndarray], signed: bool) -> float:
    """Return the value at the end of a scale of colours that some maps share; 1 if they are all zero."""
    magnitudes = np.abs(np.concatenate([each.ravel() for each in maps]))
    strongest = float(magnitudes.max())
    if signed:
        return float(np.percentile(magnitudes, SIGNED_PERCENTILE)) or strongest or 1.0
    return strongest or 1.0


def heat_colours(values: np.ndarray, pixels: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Blend a heat map (H, W), not all zero, with its image (H, W, 3) uint8: (H, W, 3) in [0, 1]."""
    return _blended(values / (limit or values.max()), style.grey(pixels))


def _blended(shares: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Return the colours of shares (…) of the scale over greys (…, 3), both in [0, 1]."""
    # The image is reduced to greys of 0.15 to 0.85, so that a value has nearly the same colour everywhere.
    heat = matplotlib.colormaps[_HEAT](np.clip(shares, 0, 1))[..., :3]
    return _ALPHA * heat + (1 - _ALPHA) * (0.15 + 0.7 * grey)


def signed_colours(values: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Return the colours (H, W, 3) in [0, 1] of a signed map (H, W), not all zero; zero is white."""
    limit = limit or limit_of([values], signed=True)
    return style.SIGNED(0.5 + 0.5 * np.clip(values / limit, -1, 1))[..., :3]


_HEAT = "inferno"


def _bar_text(tiles: Sequence[Tile]) -> str:
    """Return what the colours of some maps of one kind mean."""
    shared = "row" if all(tile.limit for tile in tiles) else "panel"
    if not tiles[0].signed:
        return f"share of the strongest value in the {shared} (left: over black, right: over white)"
    rest = f"{100 - SIGNED_PERCENTILE:g} %"
    smooth = "; smoothed for the eye" if any(tile.smooth for tile in tiles) else ""
    return (
        f"for (red) and against (blue), share of the strongest value in the {shared}; the top {rest} of "
        f"pixels count as 1{smooth}"
    )


def _add_bar(figure: Figure, axes: np.ndarray, tiles: Sequence[Tile], height: float) -> None:
    signed = tiles[0].signed
    scale = ScalarMappable(Normalize(-1 if signed else 0, 1), style.SIGNED if signed else _HEAT)
    bar = figure.colorbar(
        scale,
        ax=axes.ravel().tolist(),
        ticks=[-1, 0, 1] if signed else [0, 0.5, 1],
        shrink=min(1.0, height / figure.get_figheight()),
        aspect=height / _BAR,
        anchor=(0, 1) if len(axes) > 2 else (0, 0.5),
        fraction=_BAR / figure.get_figwidth(),
        pad=0.1 / figure.get_figwidth(),
    )
    if not signed:
        shares, greys = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 16), indexing="ij")
        style.fill_bar(bar, _blended(shares, np.repeat(greys[..., None], 3, axis=2)))
    bar.set_label(textwrap.fill(_bar_text(tiles), round(height * 14)), fontsize=8)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)


def side_by_side(first: np.ndarray, second: np.ndarray, side: int) -> np.ndarray:
    """Return two pictures (H, W, 3) uint8 of one size beside each other, each at most `side` pixels long."""
    from PIL import Image

    small = []
    for each in (first, second):
        image = Image.fromarray(each)
        scale = side / max(image.size)
        how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        width, height = (max(1, round(scale * length)) for length in image.size)
        small.append(np.asarray(image.resize((width, height), how)))
    gap = np.full((len(small[0]), 4, 3), 255, dtype=np.uint8)
    return np.concatenate([small[0], gap, small[1]], axis=1)


def contact_sheet(
    thumbnails: Sequence[tuple[Sequence[str], np.ndarray | None]], columns: int = frames.COLUMNS
) -> Figure:
    """Return a page of thumbnails (H, W, 3) uint8, each with the lines of its title; None leaves a gap."""
    lines = -(-len(thumbnails) // columns)
    figure = Figure(figsize=(columns * CELL, lines * (0.62 * CELL + 2 * _LINE)))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, entry in itertools.zip_longest(grid, thumbnails):
        axes.set_axis_off()
        if entry is None:
            continue
        title, picture = entry
        shown = "\n".join(textwrap.shorten(line, _TITLE_CHARACTERS, placeholder="…") for line in title)
        axes.set_title(style.literal(shown), fontsize=7, pad=2)
        if picture is not None:
            axes.imshow(picture)
            axes.set_anchor("N")
    return figure


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
