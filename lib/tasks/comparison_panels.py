"""Panels of a comparison: maps of the images that are shown, as tiles of a sheet and as small pictures."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.data.image_inputs import ImageInput
from lib.evaluation.measures import CONTROLS, MEASURES
from lib.explain.methods import METHODS
from lib.figures import explanations as pictures
from lib.figures import frames, style
from lib.runtime.spelling import readable
from lib.tasks.comparison import Comparison, kept_maps
from lib.tasks.comparison_results import Found, Row
from lib.tasks.comparison_table import title_of
from lib.tasks.explanation_sheet import MOST_LINES, picture_of

_SIDE = 336  # pixels, the longest side of a picture on the page
_NOTED = ("agreement", "deletion")  # numbers above a panel


@dataclass(frozen=True)
class Shown:
    """The panels of one target of one image for one network.

    Attributes:
        image: name of the image.
        network: name of the network.
        target: name and score of the target, as text.
        names: names of methods and controls.
        numbers: the measures of each.
        tiles: the image itself, then a tile for each name.
    """

    image: str
    network: str
    target: str
    names: list[str]
    numbers: list[dict[str, float | None]]
    tiles: list[pictures.Tile]


def shown(whole: Comparison, found: Found) -> list[Shown]:
    """Return the panels of the images that are shown.

    Raises:
        RunFailed: a kept map has vanished since it was computed.
    """
    result = []
    for number in (each for each in found.good if each < whole.settings.shown):
        images = whole.images(number)
        for told in (each for each in found.told if each.image == number):
            rows = [row for row in found.rows if (row.image, row.network) == (number, told.network)]
            network = found.run.network_names[told.network]
            kept = [kept_maps(whole, row) for row in rows]
            for target, (name, score) in enumerate(zip(told.targets, told.answers, strict=True)):
                says = f"{name}, {found.run.asked.score} {readable(score, '.2f')}"
                is_signed = METHODS[whole.references[told.network]].signed
                tiles = [
                    _tile(row, maps[target], images[told.network], target, found, is_signed)
                    for row, maps in zip(rows, kept, strict=True)
                ]
                head = _head([found.names[number], network, says], images[told.network], found)
                result.append(
                    Shown(
                        found.names[number],
                        network,
                        says,
                        [row.method for row in rows],
                        [row.numbers[target] for row in rows],
                        [head, *tiles],
                    )
                )
    return result


def _head(title: Sequence[str], image: ImageInput, found: Found) -> pictures.Tile:
    pixels, box = picture_of(image, found.run.sheets.on)
    return pictures.Tile(title, pixels, box=box)


def _tile(
    row: Row, values: np.ndarray, image: ImageInput, target: int, found: Found, reference_is_signed: bool
) -> pictures.Tile:
    pixels, box = picture_of(image, found.run.sheets.on)
    if row.method in CONTROLS:
        signed = reference_is_signed if row.method in ("control-other", "control-random") else False
        grainy = False
    else:
        signed, grainy = METHODS[row.method].signed, METHODS[row.method].grainy
    drawn = frames.smoothed(values) if grainy else values
    numbers = row.numbers[target]
    notes = [
        f"{MEASURES[name].title.split()[0]} {readable(value, '.2f')}"
        for name in _NOTED
        if (value := numbers.get(name)) is not None
    ]
    title = [title_of(row.method), *([", ".join(notes)] if notes else [])]
    return pictures.Tile(title, pixels, drawn, signed, box, smooth=drawn is not values)


Page = list[list[pictures.Tile | None]]


def pages(panels: Sequence[Shown], columns: int) -> list[Page]:
    """Return the lines of panels of each page of the sheet, without controls."""
    found: list[Page] = [[]]
    for each in panels:
        tiles = [tile for name, tile in zip(each.names, each.tiles[1:], strict=True) if name not in CONTROLS]
        lines: Page = []
        # As many panels on each line of an image, so that none stands alone on the last.
        count = -(-len(tiles) // (columns - 1))
        length = -(-len(tiles) // max(1, count))
        for first in range(0, len(tiles), length or 1):
            head = each.tiles[0] if first == 0 else None
            lines.append([head, *tiles[first : first + length]])
        if found[-1] and len(found[-1]) + len(lines) > MOST_LINES:
            found.append([])
        found[-1] += lines
    return [page for page in found if page]


def page_file(stem: Path, number: int) -> Path:
    """Return the file of a page of the sheet, counted from 0."""
    return stem.with_name(stem.name + ("" if number == 0 else f"-page-{number + 1}") + ".png")


def draw(page: Page, file: Path, *, show: bool) -> None:
    """Draw a page of the sheet."""
    style.save(pictures.sheet(page), file, show=show)


def picture(tile: pictures.Tile) -> str:
    """Return a tile's picture without its title as a data URI: a JPEG, which is small enough for a page."""
    from PIL import Image

    if tile.map is None:
        drawn = tile.pixels
    elif not np.any(tile.map):
        drawn = (255 * frames.faded(tile.pixels)).astype(np.uint8)
    else:
        drawn = (255 * pictures.colours(tile)).round().astype(np.uint8)
    image = Image.fromarray(drawn)
    scale = _SIDE / max(image.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = image.resize([max(1, round(scale * side)) for side in image.size], how)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
