"""Figures of segmentations: masks in the colours of their classes, beside the image and the error."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.figures import style

PANEL = 2.4  # inches, the width of a panel
_IGNORED = "#EBEBEB"  # colour of pixels without a class
_WRONG = "#F0148C"  # pink, the colour of no class
_LEGEND_CHARACTERS = 96  # on a line of the legend
_LEGEND_LINE = 0.24  # inches
_STRIP_WIDTH = 7.0  # inches, of a legend below a picture
_NARROWEST_LEGEND = 420  # pixels
_Place = Literal["outside lower center", "lower center", "center left"]
_TITLES = ("image", "truth", "prediction", "error")


class Row(NamedTuple):
    """One image with its masks.

    Attributes:
        name: of the image.
        pixels: (H, W, 3) uint8.
        truth: (H, W) labels, or None for an image without a mask.
        prediction: (H, W) labels.
    """

    name: str
    pixels: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray


def palette(classes: int) -> np.ndarray:
    """Return a colour for each class (classes, 3) uint8.

    Up to twelve are those of all figures, which colour-blind readers can tell apart; more are the colours of
    Pascal VOC, whose bits are those of the label, from the highest of each colour down.
    """
    fixed = style.PALETTE + style.MORE_COLOURS
    if classes <= len(fixed):
        colours = [to_rgb(colour) for colour, _ in style.class_styles(classes)]
        return (np.array(colours) * 255).round().astype(np.uint8)
    labels = np.arange(classes)
    found = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            found[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return found


def _bytes(colour: str) -> np.ndarray:
    return (np.array(to_rgb(colour)) * 255).round().astype(np.uint8)


def coloured(mask: np.ndarray, classes: int) -> np.ndarray:
    """Return a mask (H, W) in the colours of its classes (H, W, 3) uint8; other labels are light grey."""
    colours = np.tile(_bytes(_IGNORED), (256, 1))
    colours[:classes] = palette(classes)
    return colours[mask]


def overlay(pixels: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Return an image (H, W, 3) uint8 in grey under the colours of a mask (H, W)."""
    grey = style.grey(pixels)
    return ((0.45 * grey + 0.55 * coloured(mask, classes) / 255) * 255).round().astype(np.uint8)


def overlay_with_legend(pixels: np.ndarray, mask: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return `overlay` with a legend of the classes that occur below it, uint8.

    It is larger than the image (H, W): higher, and wider if the image is too narrow for a legend.
    """
    height, width = mask.shape
    entries = _legend([Row("", pixels, None, mask)], class_names)
    lines, whole = _lines(entries), max(width, _NARROWEST_LEGEND)
    # Text is as large in a small picture as in a large one.
    figure = Figure(figsize=(_STRIP_WIDTH, _LEGEND_LINE * lines + 0.1), dpi=whole / _STRIP_WIDTH)
    canvas = FigureCanvasAgg(figure)
    _add_legend(figure, entries, lines, "center left" if width < whole else "lower center")
    canvas.draw()
    strip = np.asarray(canvas.buffer_rgba())[:, :whole, :3]
    result = np.full((height + len(strip), whole, 3), 255, np.uint8)
    result[:height, :width] = overlay(pixels, mask, len(class_names))
    result[height:, : strip.shape[1]] = strip
    return result


def error_of(row: Row, classes: int) -> np.ndarray:
    """Return an image in grey with its wrong pixels in pink and those without a class light grey."""
    assert row.truth is not None
    found = (style.grey(row.pixels) * 255).astype(np.uint8)
    found[row.truth != row.prediction] = _bytes(_WRONG)
    found[row.truth >= classes] = _bytes(_IGNORED)
    return found


def sheet(rows: Sequence[Row], class_names: Sequence[str]) -> Figure:
    """Return rows of image, truth, prediction and error, with a legend of the classes that occur.

    Images without a truth have two panels, the image and the prediction.
    """
    classes = len(class_names)
    columns = 4 if any(row.truth is not None for row in rows) else 2
    heights = [PANEL * row.pixels.shape[0] / row.pixels.shape[1] for row in rows]
    entries = _legend(rows, class_names)
    lines = _lines(entries)
    figure = Figure(
        figsize=(columns * (PANEL + 0.1), sum(heights) + 0.22 * len(rows) + 0.3 + _LEGEND_LINE * lines)
    )
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    titles = _TITLES if columns == 4 else (_TITLES[0], _TITLES[2])
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        panels = [row.pixels, *_masks(row, classes)]
        for column, place in enumerate(line):
            title = titles[column] if number == 0 else ""
            _draw(place, panels[column] if column < len(panels) else None, title)
        line[0].set_ylabel(style.literal(row.name[:28]), fontsize=8)
    _add_legend(figure, entries, lines, "outside lower center")
    return figure


def _add_legend(figure: Figure, entries: Sequence[tuple[str, str]], lines: int, place: _Place) -> None:
    figure.legend(
        handles=[Patch(facecolor=colour, edgecolor=style.GRID, label=name) for name, colour in entries],
        loc=place,
        ncols=-(-len(entries) // lines),
        fontsize=8,
    )


def _masks(row: Row, classes: int) -> list[np.ndarray]:
    prediction = coloured(row.prediction, classes)
    if row.truth is None:
        return [prediction]
    return [coloured(row.truth, classes), prediction, error_of(row, classes)]


def _draw(axes: Axes, pixels: np.ndarray | None, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set(visible=False)
    axes.set_title(title, fontsize=10, pad=4)
    if pixels is not None:
        axes.imshow(pixels, interpolation="nearest")


def _legend(rows: Sequence[Row], class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Return name and colour of each class that occurs, of pixels without one, and of errors."""
    classes = len(class_names)
    masks = [mask for row in rows for mask in (row.truth, row.prediction) if mask is not None]
    present = np.unique(np.concatenate([np.unique(mask) for mask in masks]))
    entries = [
        (style.literal(class_names[label]), to_hex(tuple(palette(classes)[label] / 255)))
        for label in present
        if label < classes
    ]
    if (present >= classes).any():
        entries.append(("no class", _IGNORED))
    if any(row.truth is not None for row in rows):
        entries.append(("wrong", _WRONG))
    return entries


def _lines(entries: Sequence[tuple[str, str]]) -> int:
    characters = len(entries) * (max(len(name) for name, _ in entries) + 6)
    return max(1, -(-characters // _LEGEND_CHARACTERS))
