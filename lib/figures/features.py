"""Features as points: examples at each layer, by PCA above and by t-SNE below; images at their points."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

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
    """Return a figure of one column per layer, PCA above and t-SNE below, coloured by class.

    Args:
        points: layer name to {"pca": (N, dims), "tsne": (N, dims)}, dims 2 or 3.
        accuracies: the 5-nearest-neighbour accuracy of each of these.
        sizes: layer name to the number of its features.
        labels: (N,) indices into `class_names`.
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
    """Return one panel of images at their points, framed in the colours of their classes.

    An image that would hide another is left out, and a mark of its class stands at its point.

    Args:
        points: (N, 2).
        thumbnails: (N, H, W, 3) uint8.
        labels: (N,) indices into `class_names`.
        layer: whose features the points are.
    """
    names = [style.literal(name) for name in class_names]
    columns, fontsize = math.ceil(len(names) / 30), 8
    figure = Figure(figsize=(8 + _legend_inches(names, columns, fontsize), 8))
    axes = figure.subplots()
    low, high = points.min(axis=0), points.max(axis=0)
    places = (points - low) / np.where(high > low, high - low, 1)  # in a square of side 1
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
        frame = {"edgecolor": styles[labels[index]][0], "facecolor": "none", "linewidth": 1.6, "zorder": 4}
        axes.add_patch(Rectangle((x - half, y - half), side, side, **frame))
    axes.set(xlim=(-side, 1 + side), ylim=(-side, 1 + side), aspect="equal")
    axes.set_axis_off()
    axes.set_title(f"t-SNE of {style.literal(layer)}: {drawn.sum()} of {len(points)} images", fontsize=10)
    _add_legend(figure, names, columns, fontsize)
    return figure


def _apart(places: np.ndarray, side: float) -> np.ndarray:
    """Return which of `places` (N, 2) to draw a square of `side` at, (N,), so that no two hide each other."""
    drawn = np.zeros(len(places), dtype=bool)
    for index in np.random.default_rng(0).permutation(len(places)):
        distance = np.abs(places[drawn] - places[index]).max(axis=1)
        drawn[index] = not (distance < side).any()
    return drawn


def _heading(layer: str, size: int) -> str:
    # A name is broken at its dots; textwrap breaks at spaces.
    lines = textwrap.wrap(layer.replace(".", ". "), TITLE_CHARACTERS)
    name = style.literal("\n".join(lines).replace(". ", "."))
    return f"{name}\n{size:,}-dim · "


def _draw_points(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: int) -> None:
    size = float(np.clip(80 / math.sqrt(len(points)), 2, 5))
    for label, (colour, marker) in enumerate(style.class_styles(classes)):
        # Markers of a line, not a scatter: they repeat pixel by pixel, so a PNG is up to a third smaller.
        # Rasterised: as vectors, thousands of points make an SVG or a PDF that is slow to open.
        look = {"color": colour, "marker": marker, "markersize": size, "markeredgewidth": 0}
        axes.plot(*points[labels == label].T, linestyle="", rasterized=True, **look)
    axes.grid(False)
    # The axes of both methods have no unit worth reading: what counts is who is near whom.
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    if axes.name == "3d":
        axes.set_box_aspect(None, zoom=1.25)
        axes.set(xticks=[], yticks=[], zticks=[])
    else:
        axes.set_box_aspect(1)


def _name_row(axes: Axes, name: str) -> None:
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(name, (0, 0.5), (-6, 0), rotation=90, fontsize=11, **place)


def _legend_inches(names: Sequence[str], columns: int, fontsize: float) -> float:
    """The width that a legend needs for itself; otherwise long names would squeeze the panels."""
    return columns * fontsize * (0.04 + 0.0085 * max(map(len, names)))


def _add_legend(figure: Figure, names: Sequence[str], columns: int, fontsize: float) -> None:
    keys = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=fontsize / 1.7)
        for colour, marker in style.class_styles(len(names))
    ]
    figure.legend(
        keys, names, loc="outside right center", ncols=columns, fontsize=fontsize, handletextpad=0.2
    )
