"""Figures of convolutions: the filters of one layer, and histograms of the outputs of all layers."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures import style
from lib.runtime.spelling import readable

MOST_FILTERS = 256
MOST_PANELS = 60
PANEL_INCHES = (1.9, 1.45)
_TILE, _LARGE_TILE = 0.45, 0.9  # inches, the side of a filter: of many, and of fewer than _FEW_TILES
_FEW_TILES = 12
_MOST_NUMBERS = 100  # weights that are written into their squares


class LayerStatistics(Protocol):
    """Statistics of a convolution's outputs: `lib.evaluation.activation_statistics.Activations`."""

    @property
    def layer(self) -> str: ...

    @property
    def mean(self) -> float: ...

    @property
    def variance(self) -> float: ...

    @property
    def sparsity(self) -> float | None: ...

    @property
    def counts(self) -> np.ndarray: ...

    @property
    def limits(self) -> tuple[float, float]: ...


def filters(weights: np.ndarray, layer: str) -> Figure:
    """Return the filters (N, C, h, w) of a convolution side by side, on a common scale.

    Filters of three channels are drawn as RGB, with zero as middle grey. Other filters are drawn as their
    mean over the channels, red above zero and blue below.
    """
    shown = weights[:MOST_FILTERS]
    in_colour = weights.shape[1] == 3
    limit = max(float(np.abs(shown).max()), 1e-12)
    tiles = shown.transpose(0, 2, 3, 1) / (2 * limit) + 0.5 if in_colour else shown.mean(axis=1)
    columns = math.ceil(math.sqrt(1.6 * len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    mosaic = _mosaic(tiles, columns)
    side = _TILE if len(tiles) >= _FEW_TILES else _LARGE_TILE
    figure = Figure(figsize=(max(3.6, side * columns + 1), max(1.6, side * rows + 0.8)))
    axes = figure.subplots()
    axes.set_axis_off()
    if in_colour:
        axes.imshow(mosaic, interpolation="nearest")
    else:
        limit = max(float(np.abs(tiles).max()), 1e-12)
        image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        figure.colorbar(image, ax=axes, shrink=0.9).outline.set_visible(False)
        if tiles.size <= _MOST_NUMBERS and len(tiles) < _FEW_TILES:
            _write_weights(axes, mosaic, limit, inches=side / tiles.shape[1])
    axes.set_title(_heading(weights, layer, limit), fontsize=9, pad=6)
    return figure


def _write_weights(axes: Axes, mosaic: np.ndarray, limit: float, inches: float) -> None:
    """Write each weight into its square, whose side has a number of inches."""
    for (row, column), value in np.ndenumerate(mosaic):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.6 * limit else style.INK
            text = readable(value, ".2g")
            size = min(9.0, 20 * inches)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _heading(weights: np.ndarray, layer: str, limit: float) -> str:
    number, channels, height, width = weights.shape
    which = f"the first {MOST_FILTERS} of {number}" if number > MOST_FILTERS else f"{number}"
    scale = f"black −{limit:.2g}, grey 0, full colour +{limit:.2g}" if channels == 3 else f"±{limit:.2g}"
    filters = "filter" if number == 1 else "filters"
    mean = "" if channels in (1, 3) else f", mean of {channels} channels"
    return f"{style.literal(layer)}: {which} {filters} of {height}×{width}{mean}\n{scale}"


def _mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Arrange tiles (N, h, w) or (N, h, w, 3) on a grid, with white gaps of one pixel between them."""
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    empty = 1.0 if tiles.ndim == 4 else np.nan  # both are drawn white
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *tiles.shape[3:]), empty)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        grid[top : top + height, left : left + width] = tile
    return grid


def activations(rows: Sequence[LayerStatistics]) -> Figure:
    """Return a histogram of each convolution's outputs, titled with mean, standard deviation and sparsity.

    The sparsity is the share of zeros behind the activation function that follows.
    """
    shown = rows[:MOST_PANELS]
    columns = max(1, min(6, math.ceil(math.sqrt(1.4 * len(shown)))))
    lines = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(max(3.4, PANEL_INCHES[0] * columns), PANEL_INCHES[1] * lines + 0.35))
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, row in zip(panels.flat, shown, strict=False):
        _histogram(axes, row)
    figure.supxlabel("output of the convolution", fontsize=9)
    figure.supylabel("share of outputs", fontsize=9)
    return figure


def _histogram(axes: Axes, row: LayerStatistics) -> None:
    edges = np.linspace(*row.limits, len(row.counts) + 1)
    axes.stairs(row.counts / row.counts.sum(), edges, fill=True, color=style.PALETTE[0])
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yscale("log")
    axes.tick_params(labelsize=6.5, length=2)
    axes.minorticks_off()
    # Activations such as SiLU leave no zeros, of which nothing is said.
    sparsity = f", {row.sparsity:.0%} set to zero" if row.sparsity and row.sparsity >= 0.005 else ""
    facts = f"{row.mean:.2g} ± {math.sqrt(row.variance):.2g}{sparsity}"
    axes.set_title(f"{style.literal(row.layer)}\n{facts}", fontsize=7, pad=3)
