"""Boxes of objects in images: a JSON file, and where a box of a photograph lies in a network's input."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lib.data.image_inputs import ImageInput
from lib.runtime.errors import UserError
from lib.runtime.files import existing_file


class ObjectBox(NamedTuple):
    """A box in pixels: rows from top to bottom and columns from left to right, the last ones excluded."""

    top: float
    left: float
    bottom: float
    right: float


def read_boxes(path: str | Path) -> dict[str, ObjectBox]:
    """Return the box of each image that a file {"IMAGE": [Y0, X0, Y1, X1], …} names.

    Raises:
        UserError: it is no such file.
    """
    form = '{"IMAGE": [Y0, X0, Y1, X1], …}'
    try:
        content = json.loads(existing_file(path).read_bytes())  # UTF-8 or UTF-16
    except (OSError, ValueError, RecursionError):  # no text, not JSON, or nested too deeply
        raise UserError(f"--boxes {path} is not JSON of the form {form}") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"--boxes {path} is not of the form {form}")
    found = {}
    for name, box in content.items():
        is_box = isinstance(box, list) and len(box) == 4 and all(_is_number(each) for each in box)
        if not is_box or not (0 <= box[0] < box[2] <= _MOST and 0 <= box[1] < box[3] <= _MOST):
            raise UserError(f"--boxes {path}: that of {name!r} is no box [Y0, X0, Y1, X1]: {str(box)[:60]}")
        found[name] = ObjectBox(*map(float, box))
    return found


_MOST = 2**20  # pixels


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def box_in_input(box: ObjectBox, image: ImageInput) -> ObjectBox:
    """Return where a box of the photograph lies in the input; that of an example is its own input."""
    if image.original is None:
        return box
    seen, (height, width) = image.original.box, image.size
    down, across = height / (seen.bottom - seen.top), width / (seen.right - seen.left)
    return ObjectBox(
        (box.top - seen.top) * down,
        (box.left - seen.left) * across,
        (box.bottom - seen.top) * down,
        (box.right - seen.left) * across,
    )
