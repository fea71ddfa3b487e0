"""Shapley values drawn on an image: players coloured by value, or pairs of players joined by interaction."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lib.figures import style

STRONGEST_PAIRS = 24

_CELL = 2.6  # inches, the side of a panel
_LINE = 0.17  # inches, of a title
_TITLE_CHARACTERS = 40


class Scene(NamedTuple):
    """The parts that all panels of a figure share.

    Attributes:
        pixels: (H, W, 3) uint8, the image as the network saw it.
        player_map: (H, W) index of the player to which each pixel belongs.
        heading: title lines of the image.
        unit: unit of the values.
    """

    pixels: np.ndarray
    player_map: np.ndarray
    heading: Sequence[str]
    unit: str


def attributions(
    scene: Scene, titles: Sequence[str], values: np.ndarray, uncertain: np.ndarray | None = None
) -> Figure:
    """Return a figure of the image and one panel per class, with the players in the colours of their values.

    Args:
        scene: the image and its players.
        titles: one title per class.
        values: (T, n), Shapley values of n players for T classes.
        uncertain: (T, n) mask of the players to hatch, because the sign of their value is not certain.
    """
    limit = np.abs(values).max() or 1.0
    figure, panels = _panels(scene, titles)
    for row, axes in enumerate(panels):
        colours = style.SIGNED(0.5 + 0.5 * values[row][scene.player_map] / limit)[..., :3]
        axes.imshow(0.7 * colours + 0.3 * style.grey(scene.pixels))
        _draw_borders(axes, scene.player_map, "#00000055")
        if uncertain is not None:
            _hatch(axes, uncertain[row][scene.player_map])
    note = "; hatched: sign not certain (95 %)" if uncertain is not None else ""
    _add_bar(figure, panels, limit, f"Shapley value, {scene.unit}{note}")
    return figure


def interactions(scene: Scene, titles: Sequence[str], values: np.ndarray, pairwise: np.ndarray) -> Figure:
    """Return a figure of the image and one panel per class, in which lines join the strongest pairs.

    Args:
        scene, titles, values: as for `attributions`; a player's value is the colour of its point.
        pairwise: (T, n, n) interactions. Red pairs are worth more together than the sum of their single
            contributions, blue pairs less (they are redundant).
    """
    limit = np.abs(values).max() or 1.0
    strongest = np.abs(pairwise).max() or 1.0
    figure, panels = _panels(scene, titles)
    centres = _centres(scene.player_map)
    for row, axes in enumerate(panels):
        axes.imshow(0.5 + 0.5 * style.grey(scene.pixels))
        _draw_borders(axes, scene.player_map, "#FFFFFF66")
        first, second = _strongest_pairs(pairwise[row])
        shares = pairwise[row][first, second] / strongest
        lines = LineCollection(
            list(np.stack([centres[first], centres[second]], axis=1)),
            linewidths=0.4 + 4.5 * np.abs(shares),
            colors=style.SIGNED(0.5 + 0.5 * shares),
            capstyle="round",
            zorder=2,
        )
        axes.add_collection(lines)
        colours = style.SIGNED(0.5 + 0.5 * values[row] / limit)
        xs, ys = centres.T
        axes.scatter(xs, ys, s=16, c=colours, edgecolors=style.INK, linewidths=0.5, zorder=3)
    _add_bar(figure, panels, strongest, f"interaction of two, {scene.unit} (points: Shapley values)")
    return figure


def _panels(scene: Scene, titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure whose first panel shows the image, and its other panels, which are empty but titled."""
    wrapped = ["\n".join(textwrap.fill(line, _TITLE_CHARACTERS) for line in t.splitlines()) for t in titles]
    heading = "\n".join(textwrap.fill(line, _TITLE_CHARACTERS) for line in scene.heading)
    lines = 1 + max(text.count("\n") for text in [heading, *wrapped])
    columns = 1 + len(titles)
    figure = Figure(figsize=(columns * (_CELL + 0.1) + 0.9, _CELL + _LINE * lines + 0.1))
    image, *others = figure.subplots(1, columns)
    for axes, text in zip([image, *others], [heading, *wrapped], strict=True):
        axes.set_title(style.literal(text), fontsize=8, pad=4)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set(visible=True, color=style.GRID)
    image.imshow(scene.pixels)
    return figure, others


def _draw_borders(axes: Axes, player_map: np.ndarray, colour: str) -> None:
    """Draw the edges of pixels whose neighbour belongs to another player."""
    rows, columns = np.nonzero(player_map[:, 1:] != player_map[:, :-1])
    upright = np.stack([[columns + 0.5, rows - 0.5], [columns + 0.5, rows + 0.5]]).transpose(2, 0, 1)
    rows, columns = np.nonzero(player_map[1:] != player_map[:-1])
    level = np.stack([[columns - 0.5, rows + 0.5], [columns + 0.5, rows + 0.5]]).transpose(2, 0, 1)
    edges = list(np.concatenate([upright, level]))
    axes.add_collection(LineCollection(edges, colors=colour, linewidths=0.5, zorder=1.5))


def _hatch(axes: Axes, mask: np.ndarray) -> None:
    if not mask.any():
        return
    padded = np.pad(mask.astype(float), 1)  # otherwise the hatching ends half a pixel before the border
    rows, columns = (np.arange(-1, length + 1) for length in mask.shape)
    filled = axes.contourf(columns, rows, padded, levels=[0.5, 2], colors="none", hatches=["////"], zorder=2)
    filled.set(edgecolor="#00000099", linewidth=0)
    axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _centres(player_map: np.ndarray) -> np.ndarray:
    """Return the centroid (x, y) of each player's pixels, (n, 2)."""
    rows, columns = np.indices(player_map.shape)
    counts = np.bincount(player_map.ravel())
    sums = [np.bincount(player_map.ravel(), where.ravel()) for where in (columns, rows)]
    return np.stack(sums, axis=1) / counts[:, None]


def _strongest_pairs(pairwise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the players of the strongest pairs in ascending order, so that the strongest is drawn on top."""
    first, second = np.triu_indices(len(pairwise), 1)
    order = np.argsort(np.abs(pairwise[first, second]))[-STRONGEST_PAIRS:]
    return first[order], second[order]


def _add_bar(figure: Figure, panels: Sequence[Axes], limit: float, label: str) -> None:
    scale = ScalarMappable(Normalize(-limit, limit), style.SIGNED)
    bar = figure.colorbar(scale, ax=panels, fraction=0.045, aspect=22, pad=0.015)
    bar.set_label(textwrap.fill(label, 34), fontsize=8)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.grid(visible=False)
    bar.outline.set_visible(False)
