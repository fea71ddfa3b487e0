"""Sheets of explained images: which panels stand on which line, in which scale, over which picture."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lib.data.image_inputs import ImageInput
from lib.explain.methods import METHODS
from lib.figures import explanations as pictures
from lib.figures import frames, segmentation
from lib.figures.frames import Box
from lib.tasks.explanation_panels import Panel, Question, title_of
from lib.tasks.explanation_run import SheetSettings
from lib.tasks.explanation_values import as_bytes

# The most lines on a page, which is then about a metre of screen.
MOST_LINES = 14
_THUMBNAIL = 200  # pixels, the longest side of each half of a thumbnail

Line = list[pictures.Tile | None]


class Row(NamedTuple):
    """The lines of a sheet that belong together: the maps of one network and layer for one image.

    Attributes:
        network: number of the network among those of the run.
        lines: one line or more.
    """

    network: int
    lines: list[Line]


def picture_of(image: ImageInput, on: str) -> tuple[np.ndarray, Box | None]:
    """Return the picture (H, W, 3) uint8 on which maps are drawn, and where the input lies in it.

    It is the photograph if there is one and `on` is `original`, and else the input itself.
    """
    if on == "original" and image.original is not None:
        box = image.original.shown_box
        return image.original.pixels, (box.left, box.top, box.right, box.bottom)
    return as_bytes(image.pixels), None


def row_of(panels: Sequence[Panel], network: int, settings: SheetSettings) -> Row:
    """Return the row of a sheet for the panels of one question and layer."""
    pixels, box = picture_of(panels[0].question.image, settings.on)
    tiles = _tiles(panels, pixels, box, settings.scale)
    head: Line = [pictures.Tile(_describe(panels[0]), pixels, box=box)]
    if panels[0].question.areas:
        head.append(_output_tile(panels[0].question, pixels, box))
    lines: list[Line] = []
    remaining = iter(tiles)
    for count in _lengths(panels, max(1, (settings.columns or frames.COLUMNS) - len(head))):
        lines.append([*head, *itertools.islice(remaining, count)])
        head = [None] * len(head)
    return Row(network, lines)


def _lengths(panels: Sequence[Panel], most: int) -> list[int]:
    """Return the number of panels on each line of a row, if there is room for `most`.

    A class stands on one line with its panels of guided backpropagation. A depth of re-drawn weights does
    so with all its classes if there is room, and else begins a line.
    """
    depths = [list(group) for _, group in itertools.groupby(panels, key=lambda panel: panel.redrawn)]
    if len(depths) > 1 and len(depths[0]) <= most:
        return _packed([len(depth) for depth in depths], most)
    return [length for depth in depths for length in _packed(_classes(depth), most)]


def _classes(panels: Sequence[Panel]) -> list[int]:
    return [len(list(group)) for _, group in itertools.groupby(panels, key=lambda panel: panel.answer.target)]


def _packed(groups: Sequence[int], most: int) -> list[int]:
    """Return the lengths of lines with as many whole groups as there is room for, all about equally long."""
    count = -(-len(groups) // max(1, most // max(groups)))
    each = -(-len(groups) // count)
    return [sum(groups[start : start + each]) for start in range(0, len(groups), each)]


def _tiles(panels: Sequence[Panel], pixels: np.ndarray, box: Box | None, scale: str) -> list[pictures.Tile]:
    eased = [_for_the_eye(panel) for panel in panels]
    maps = [values for values, _ in eased]
    kinds = [(panel.method, panel.redrawn) for panel in panels]
    limits = {
        kind: pictures.limit_of(
            [each for each, its in zip(maps, kinds, strict=True) if its == kind], panel.signed
        )
        for kind, panel in zip(kinds, panels, strict=True)
    }
    return [
        pictures.Tile(
            [title_of(panel.record()), *panel.note.splitlines()],
            pixels,
            drawn,
            panel.signed,
            box,
            # Sums over areas of different sizes are on different scales.
            limits[kind] if scale == "row" and panel.area is None else None,
            smooth=smooth,
            area=None if panel.area is None else panel.area.numpy(),
        )
        for panel, (drawn, smooth), kind in zip(panels, eased, kinds, strict=True)
    ]


def _output_tile(question: Question, pixels: np.ndarray, box: Box | None) -> pictures.Tile:
    """Return a tile of the network's segmentation over the image, with the areas that are explained."""
    with torch.no_grad():
        labels = question.network.logits(question.pixels).argmax(1)[0].cpu().numpy()
    placed = frames.onto(labels, pixels.shape, box or frames.whole(pixels), nearest=True)
    shown = segmentation.overlay(
        pixels, np.nan_to_num(placed, nan=255).astype(np.uint8), question.classes_told
    )
    areas = np.logical_or.reduce([area.numpy() for area in question.areas])
    return pictures.Tile(["prediction,", "areas outlined"], shown, box=box, area=areas)


def _for_the_eye(panel: Panel) -> tuple[np.ndarray, bool]:
    """Return the map to draw, and whether it is smoothed."""
    values = panel.map.numpy()
    is_grainy = panel.method in METHODS and METHODS[panel.method].grainy
    smooth = frames.smoothed(values) if is_grainy else values
    return smooth, smooth is not values


def pages(rows: Sequence[Row]) -> list[list[Line]]:
    """Return the lines of each page of a sheet; a row is never broken over two pages, unless it is longer."""
    found: list[list[Line]] = [[]]
    for row in rows:
        if found[-1] and len(found[-1]) + len(row.lines) > MOST_LINES:
            found.append([])
        found[-1] += row.lines
    return found


def _describe(panel: Panel) -> list[str]:
    """Return the heading of a row: the image, the network and the layer."""
    size = "" if panel.raw_map is None else " {}×{}".format(*panel.raw_map.shape)
    return [*heading(panel.question), *([panel.layer + size] if panel.layer else [])]


def heading(question: Question) -> list[str]:
    """Return the image's name and label, and the network's name, training epochs and number of views.

    Epochs are counted from 1, as in file names.
    """
    network, image = question.network, question.image
    label = f" ({image.label})" if image.label else ""
    epochs = "" if network.epoch is None else f", {network.epoch} epoch{'' if network.epoch == 1 else 's'}"
    views = "" if network.views == 1 else f", mean of {network.views} views"
    return [image.name + label, network.name + epochs + views]


def thumbnail(panel: Panel, settings: SheetSettings) -> np.ndarray:
    """Return a small picture (H, W, 3) uint8 of an image and, beside it, of its first map."""
    pixels, box = picture_of(panel.question.image, settings.on)
    (tile,) = _tiles([panel], pixels, box, "panel")
    found = pictures.colours(tile) if panel.map.any() else frames.faded(pixels)
    halves = (pixels, (255 * found).round().astype(np.uint8))
    return pictures.side_by_side(*halves, side=_THUMBNAIL)
