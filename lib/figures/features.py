"""Scatter plots of features: examples at each layer in two projections, PCA and t-SNE, or with thumbnails."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d import Axes3D

from lib.figures import style

METHODS = {"pca": "PCA", "tsne": "t-SNE"}
PANEL_INCHES = 1.75
TITLE_CHARACTERS = 23
MOST_CLASSES_IN_LARGE_PRINT = 40


def layer_panels(
    points: Mapping[str, Mapping[str, np.ndarray]],
    accuracies: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """Return a figure with one column per layer: PCA above, t-SNE below, points coloured by class.

    Args:
        points: layer name to {"pca": (N, dims), "tsne": (N, dims)}, dims 2 or 3.
        accuracies: 5-nearest-neighbour accuracy of each projection, by the same keys.
        sizes: layer name to the number of its features.
        labels: (N,) indices into `class_names`.
        class_names: names of the classes.
    """
    dims = next(iter(points.values()))["pca"].shape[1]
    names = [style.literal(name) for name in class_names]
    large = len(names) <= MOST_CLASSES_IN_LARGE_PRINT
    fontsize, rows = (9, 20) if large else (6.5, 30)
    columns = math.ceil(len(names) / rows)
    width = PANEL_INCHES * len(points) + _legend_inches(names, columns, fontsize)
    figure = Figure(figsize=(width, 2 * PANEL_INCHES + 0.7))
    projection = {"projection": "3d"} if dims == 3 else {}
    panels = figure.subplots(2, len(points), squeeze=False, subplot_kw=projection)
    for row, (method, method_name) in zip(panels, METHODS.items(), strict=True):
        for axes, layer in zip(row, points, strict=True):
            _draw_points(axes, points[layer][method], labels, len(names))
            heading = _heading(layer, sizes[layer]) if method == "pca" else ""
            axes.set_title(f"{heading}5-NN {accuracies[layer][method]:.2f}", fontsize=8, pad=4)
        _name_row(row[0], method_name)
    _add_legend(figure, names, columns, fontsize)
    return figure


def thumbnail_sheet(
    points: np.ndarray,
    thumbnails: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    layer: str,
) -> Figure:
    """Return one panel of thumbnails at their points, framed in the colours of their classes.

    An image that would cover another is replaced by a marker of its class.

    Args:
        points: (N, 2).
        thumbnails: (N, H, W, 3) uint8.
        labels: (N,) indices into `class_names`.
        class_names: names of the classes.
        layer: name of the layer whose features the points show.
    """
    names = [style.literal(name) for name in class_names]
    columns, fontsize = math.ceil(len(names) / 30), 8
    figure = Figure(figsize=(8 + _legend_inches(names, columns, fontsize), 8))
    axes = figure.subplots()
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.where(high > low, high - low, 1)  # in the unit square
    side = float(np.clip(0.9 / math.sqrt(len(points)), 0.025, 0.08))
    drawn = _apart(places, side)
    styles = style.class_styles(len(class_names))
    for label, (colour, marker) in enumerate(styles):
        marks = places[(labels == label) & ~drawn]
        axes.plot(*marks.T, color=colour, marker=marker, linestyle="", markersize=2.5, markeredgewidth=0)
    for index in np.flatnonzero(drawn):
        (x, y), half = places[index], side / 2
        extent = (x - half, x + half, y - half, y + half)
        axes.imshow(thumbnails[index], extent=extent, zorder=3, interpolation="antialiased")
        colour = styles[labels[index]][0]
        frame = Rectangle(
            (x - half, y - half), side, side, edgecolor=colour, facecolor="none", linewidth=1.6, zorder=4
        )
        axes.add_patch(frame)
    axes.set(xlim=(-side, 1 + side), ylim=(-side, 1 + side), aspect="equal")
    axes.set_axis_off()
    axes.set_title(f"t-SNE of {style.literal(layer)}: {drawn.sum()} of {len(points)} images", fontsize=10)
    _add_legend(figure, names, columns, fontsize)
    return figure


def _apart(places: np.ndarray, side: float) -> np.ndarray:
    """Choose points of `places` (N, 2) whose squares of this `side` do not overlap: a mask (N,).

    Points are taken greedily in a fixed random order, so that the choice favours no class or region.
    """
    drawn = np.zeros(len(places), dtype=bool)
    for index in np.random.default_rng(0).permutation(len(places)):
        distance = np.abs(places[drawn] - places[index]).max(axis=1)
        drawn[index] = not (distance < side).any()
    return drawn


def _heading(layer: str, size: int) -> str:
    # Names of layers are wrapped at their dots; textwrap only breaks at spaces.
    lines = textwrap.wrap(layer.replace(".", ". "), TITLE_CHARACTERS)
    name = style.literal("\n".join(lines).replace(". ", "."))
    return f"{name}\n{size:,}-dim · "


def _draw_points(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: int) -> None:
    size = float(np.clip(80 / math.sqrt(len(points)), 2, 5))
    for label, (colour, marker) in enumerate(style.class_styles(classes)):
        # Markers of a line instead of a scatter: all are drawn with identical pixels, which makes a PNG up to
        # a third smaller. Rasterised, because thousands of vector points make an SVG or PDF slow to open.
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size, "markeredgewidth": 0}
        axes.plot(*points[labels == label].T, linestyle="", rasterized=True, **look)
    axes.grid(False)
    # The coordinates have no meaningful unit in either method; only distances between points matter.
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    if isinstance(axes, Axes3D):
        axes.set_box_aspect(None, zoom=1.25)
        axes.set(xticks=[], yticks=[], zticks=[])
    else:
        axes.set_box_aspect(1)


def _name_row(axes: Axes, name: str) -> None:
    axes.annotate(
        name,
        (0, 0.5),
        (-6, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="center",
        rotation=90,
        fontsize=11,
    )


def _legend_inches(names: Sequence[str], columns: int, fontsize: float) -> float:
    """Estimate the width of the legend in inches, which is added to the figure's: long names need room."""
    return columns * fontsize * (0.04 + 0.0085 * max(map(len, names)))


def _add_legend(figure: Figure, names: Sequence[str], columns: int, fontsize: float) -> None:
    keys = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=fontsize / 1.7)
        for colour, marker in style.class_styles(len(names))
    ]
    figure.legend(
        keys, names, loc="outside right center", ncols=columns, fontsize=fontsize, handletextpad=0.2
    )
