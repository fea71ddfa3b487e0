"""Files of what explanations found: records as JSON or JSON lines, arrays as .npz."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.runtime.errors import UserError
from lib.runtime.files import replaced
from lib.tasks.explanation_panels import Panel


def as_json(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Return records of plain values as JSON, which has no NaN or infinity: these become null."""
    return f"{json.dumps([_plain(each) for each in records], indent=1, ensure_ascii=False)}\n".encode()


def as_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Return records of plain values as JSON lines, one for each."""
    return "".join(f"{json.dumps(_plain(each), ensure_ascii=False)}\n" for each in records).encode()


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


class RowsOfArrays:
    """The arrays behind panels, which are kept for a file of values; the panels themselves are not."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, rows: Sequence[dict[str, Any]], path: str) -> None:
        """Add rows of `arrays_of`.

        Raises:
            UserError: their maps have another size than those before; the message names `path`.
        """
        if len({row["maps"].shape for row in (*self._rows[:1], *rows)}) > 1:
            raise UserError(
                f"{path} cannot hold maps of different sizes: ask the networks one by one, or name a folder "
                f"for one file an image: --save-values {path.removesuffix('.npz')}/"
            )
        self._rows += rows

    def __bool__(self) -> bool:
        return bool(self._rows)

    def save(self, path: Path, **more: Any) -> None:
        """Save the rows as `save_rows` does."""
        save_rows(path, self._rows, **more)


def save_values(path: Path, panels: Sequence[Panel]) -> None:
    """Save the arrays behind panels; see `save_rows`."""
    save_rows(path, [arrays_of(panel) for panel in panels])


def arrays_of(panel: Panel) -> dict[str, Any]:
    """Return the arrays and names behind a panel; see `save_rows`."""
    record, image = panel.record(), panel.question.image
    row: dict[str, Any] = {
        "maps": panel.map.numpy(),
        "raw_maps": np.empty((0, 0)) if panel.raw_map is None else panel.raw_map.numpy(),
        "inputs": as_bytes(image.pixels),
        "names": record["image"],
        "models": record["model"],
        "layers": panel.layer,
        "methods": panel.method,
        "classes": panel.class_name,
        "redrawn": ",".join(panel.redrawn),
        "epochs": record.get("epoch", -1),
        "targets": panel.answer.target,
        "probabilities": np.nan if panel.answer.probability is None else panel.answer.probability,
        "scores": panel.answer.score,
        "boxes": None if image.original is None else np.array(image.original.box),
    }
    if panel.parts is None:
        return row
    of_parts = {
        "empty_scores": panel.numbers["value_empty"],
        "evaluations": panel.numbers["evaluations"],
        "values": _array(panel.part_values),
        "standard_errors": _array(panel.standard_errors),
        "player_map": panel.parts.numpy(),
    }
    left_out = ("layers", "methods", "redrawn", "epochs")
    return {name: value for name, value in row.items() if name not in left_out} | of_parts


def save_rows(path: Path, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Save the arrays behind panels as an .npz file, one row per panel in reading order.

    The arrays are maps (P, H, W) at input size; raw_maps (P, h, w) if any map was coarser, each in the upper
    left corner, of size raw_sizes (P, 2), with NaN outside; inputs (P, H, W, 3) uint8; names, models, layers,
    methods, classes, redrawn (P,) text; targets, probabilities, scores (P,), where a target that is no class
    has the probability NaN; epochs (P,), −1 if unknown; boxes (P, 4), if there are image files: left, top,
    right and bottom of the input in the file's image, in its pixels, NaN for an example of a data set.

    Of values of parts, there are no layers, methods, redrawn and epochs, but empty_scores, evaluations (P,);
    values, standard_errors (P, players), NaN at the end if an image has fewer players than others; player_map
    (H, W), or (P, H, W) if it differs between images.

    Args:
        path: file to write.
        rows: rows of `arrays_of`.
        more: further arrays.

    Raises:
        RunFailed: the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    for name in rows[0]:
        column = [row[name] for row in rows]
        arrays |= _COLUMNS[name](column) if name in _COLUMNS else {name: np.array(column)}
    with replaced(path) as file:
        np.savez_compressed(file, **arrays, **more)


def _raw_maps(raw: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    sizes = np.array([each.shape for each in raw])
    if not sizes.any():
        return {}
    maps = np.full((len(raw), *sizes.max(0)), np.nan, np.float32)
    for place, each in zip(maps, raw, strict=True):
        place[: each.shape[0], : each.shape[1]] = each
    return {"raw_maps": maps, "raw_sizes": sizes}


def _boxes(boxes: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    if all(box is None for box in boxes):
        return {}
    return {"boxes": np.stack([np.full(4, np.nan) if box is None else box for box in boxes])}


def _player_maps(maps: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    same = all(np.array_equal(each, maps[0]) for each in maps)
    return {"player_map": maps[0] if same else np.stack(maps)}


def _side_by_side(name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays (n,) of different lengths n as rows, padded with NaN on the right."""
    width = max(map(len, arrays))
    return {name: np.stack([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in arrays])}


# How rows become arrays, where that is not one array of the rows.
_COLUMNS: dict[str, Any] = {
    "raw_maps": _raw_maps,
    "boxes": _boxes,
    "player_map": _player_maps,
    "values": lambda column: _side_by_side("values", column),
    "standard_errors": lambda column: _side_by_side("standard_errors", column),
}


def _array(values: Tensor | None) -> np.ndarray:
    return np.empty(0) if values is None else values.numpy()


def as_bytes(pixels: Tensor) -> np.ndarray:
    """Return pixels (C, H, W) in [0, 1] as (H, W, 3) uint8."""
    colour = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    return (colour * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
