"""The feature picture: the same examples at each layer, by PCA above and by t-SNE below."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
    # The legend gets a width of its own; otherwise long names would squeeze the panels.
    legend_inches = columns * fontsize * (0.04 + 0.0085 * max(map(len, names)))
    figure = Figure(figsize=(PANEL_INCHES * len(points) + legend_inches, 2 * PANEL_INCHES + 0.7))
    projection = {"projection": "3d"} if dims == 3 else {}
    panels = figure.subplots(2, len(points), squeeze=False, subplot_kw=projection)
    for row, (method, method_name) in zip(panels, METHODS.items(), strict=True):
        for axes, layer in zip(row, points, strict=True):
            _draw_points(axes, points[layer][method], labels, len(names))
            heading = _heading(layer, sizes[layer]) if method == "pca" else ""
            axes.set_title(f"{heading}5-NN {accuracies[layer][method]:.2f}", fontsize=8, pad=4)
        _name_row(row[0], method_name)
    keys = _keys(len(names), fontsize)
    figure.legend(
        keys, names, loc="outside right center", ncols=columns, fontsize=fontsize, handletextpad=0.2
    )
    return figure


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


def _keys(classes: int, fontsize: float) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=fontsize / 1.7)
        for colour, marker in style.class_styles(classes)
    ]
