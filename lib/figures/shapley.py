"""Shapley values drawn on an image: players coloured by value, or pairs of players joined by interaction."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lib.figures import frames, style
from lib.figures.frames import Box

STRONGEST_PAIRS = 24

_CELL = 2.6  # inches, the width of a panel
_TALLEST = 1.6  # height of a panel, in widths
_WIDTH = 11.7  # inches, of a page
_LINE = 0.17  # inches, of a title
_TITLE_CHARACTERS = 40


class Scene(NamedTuple):
    """The parts that all panels of a figure share.

    Attributes:
        pixels: (H, W, 3) uint8, the photograph, or the part that the network saw.
        player_map: (h, w) index of the player to which each pixel of the input belongs.
        heading: title lines of the image.
        unit: unit of the values.
        box: where the input lies in `pixels`; None if it is all of it.
        columns: number of panels on a line, with the image.
    """

    pixels: np.ndarray
    player_map: np.ndarray
    heading: Sequence[str]
    unit: str
    box: Box | None = None
    columns: int = frames.COLUMNS

    @property
    def place(self) -> Box:
        """Where the input lies in `pixels`."""
        return self.box or frames.whole(self.pixels)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return points (…, 2), x and y in pixels of the input counted from 0, in pixels of the picture."""
        left, top, right, bottom = self.place
        height, width = self.player_map.shape
        scale = np.array([(right - left) / width, (bottom - top) / height])
        return np.array([left, top]) + (points + 0.5) * scale - 0.5

    def drawn(self, values: np.ndarray) -> np.ndarray:
        """Return values of pixels of the input (h, w) in the picture (H, W), NaN outside of the input."""
        return frames.onto(values, self.pixels.shape, self.place, nearest=True)


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
        shares = scene.drawn(values[row][scene.player_map] / limit)
        inside = ~np.isnan(shares)
        colours = _blended(np.where(inside, shares, 0.0), style.grey(scene.pixels))
        axes.imshow(frames.with_surroundings(colours, inside, scene.pixels))
        _draw_borders(axes, scene, "#00000055")
        if uncertain is not None:
            _hatch(axes, scene, uncertain[row][scene.player_map])
    note = "; hatched: sign not certain (95 %)" if uncertain is not None else ""
    about = f"Shapley value, {scene.unit} (left: over black, right: over white){note}"
    bar = _add_bar(figure, panels, limit, about)
    shares, greys = np.meshgrid(np.linspace(-1, 1, 256), np.linspace(0, 1, 16), indexing="ij")
    style.fill_bar(bar, _blended(shares, np.repeat(greys[..., None], 3, axis=2)))
    return figure


def _blended(shares: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Return the colours of shares (…) of the scale, from −1 to 1, over greys (…, 3)."""
    # The image is reduced to light greys: zero is nearly white over black, too.
    return 0.7 * style.SIGNED(0.5 + 0.5 * shares)[..., :3] + 0.3 * (0.5 + 0.5 * grey)


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
    centres = scene.at(_centres(scene.player_map))
    for row, axes in enumerate(panels):
        axes.imshow(0.5 + 0.5 * style.grey(scene.pixels))
        _draw_borders(axes, scene, "#FFFFFF66")
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
    # The image stands before the first line of panels, and the lines are about equally long.
    count = -(-len(titles) // max(scene.columns - 1, 1))
    across = 1 + -(-len(titles) // count)
    cell = min(_CELL, (_WIDTH - 0.9) / across - 0.1)
    tall = cell * min(_TALLEST, scene.pixels.shape[0] / scene.pixels.shape[1])
    figure = Figure(figsize=(across * (cell + 0.1) + 0.9, count * (tall + _LINE * lines + 0.1)))
    grid = figure.subplots(count, across, squeeze=False)
    image, others = grid[0, 0], list(grid[:, 1:].ravel())
    for axes in [*grid[1:, 0], *others[len(titles) :]]:
        axes.set_axis_off()
    others = others[: len(titles)]
    for axes, text in zip([image, *others], [heading, *wrapped], strict=True):
        axes.set_title(style.literal(text), fontsize=8, pad=4)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set(visible=True, color=style.GRID)
    image.imshow(scene.pixels)
    frames.outline(image, scene.pixels, scene.place)
    return figure, others


def _draw_borders(axes: Axes, scene: Scene, colour: str) -> None:
    """Draw the edges of pixels whose neighbour belongs to another player."""
    player_map = scene.player_map
    rows, columns = np.nonzero(player_map[:, 1:] != player_map[:, :-1])
    upright = np.stack([[columns + 0.5, rows - 0.5], [columns + 0.5, rows + 0.5]]).transpose(2, 0, 1)
    rows, columns = np.nonzero(player_map[1:] != player_map[:-1])
    level = np.stack([[columns - 0.5, rows + 0.5], [columns + 0.5, rows + 0.5]]).transpose(2, 0, 1)
    edges = list(scene.at(np.concatenate([upright, level])))
    lines = LineCollection(edges, colors=colour, linewidths=0.5, zorder=1.5)
    # Of a padded input, the picture does not show the margins.
    axes.add_collection(lines, autolim=False)


def _hatch(axes: Axes, scene: Scene, mask: np.ndarray) -> None:
    if not mask.any():
        return
    padded = np.pad(mask.astype(float), 1)  # otherwise the hatching ends half a pixel before the border
    rows, columns = (np.arange(-1, length + 1) for length in mask.shape)
    xs = scene.at(np.stack([columns, columns], axis=1))[:, 0]
    ys = scene.at(np.stack([rows, rows], axis=1))[:, 1]
    filled = axes.contourf(xs, ys, padded, levels=[0.5, 2], colors="none", hatches=["////"], zorder=2)
    filled.set(edgecolor="#00000099", linewidth=0)
    height, width = scene.pixels.shape[:2]
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


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


def _add_bar(figure: Figure, panels: Sequence[Axes], limit: float, label: str) -> Colorbar:
    scale = ScalarMappable(Normalize(-limit, limit), style.SIGNED)
    bar = figure.colorbar(scale, ax=panels, fraction=0.045, aspect=22, pad=0.015)
    bar.set_label(textwrap.fill(label, 34), fontsize=8)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.grid(visible=False)
    bar.outline.set_visible(False)
    return bar
