"""Targets of an area of a dense output: y = Σ M · output, with a mask M of the output's pixels.

The output gives each pixel a number for each class, (B, classes, H, W), or the pixels of an image. A single
pixel, a box, the pixels of a predicted class and whole outputs are all areas; for a classifier, whose output
is one pixel, the area target of a class is its score.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain.targets import Target
from lib.runtime.errors import UserError
from lib.runtime.spelling import whole_number

REGIONS = ("box", "prediction", "truth", "all")
_KINDS = ("logit", "log-odds", "probability")

Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two lie just outside


class Region(NamedTuple):
    """An area to be found in an output.

    Attributes:
        kind: `box`, `prediction`, the pixels whose predicted class is that of the target, `truth`, those
            whose true class it is, `all`, or `pixel`.
        box: of `box`; of `pixel`, that of this one pixel.
    """

    kind: str
    box: Box | None = None

    @property
    def name(self) -> str:
        """Name in titles and records."""
        if self.box is None:
            return self.kind
        return ",".join(map(str, self.box[:2] if self.kind == "pixel" else self.box))


def region_of(text: str | None, box: Box | None) -> Region:
    """Return the region that `--region` and `--area` name; by default a box if there is one, or `prediction`.

    Raises:
        UserError: there is no such region, or a box is missing or one too many.
    """
    kind = text or ("box" if box else "prediction")
    numbers = [whole_number(part) for part in kind.split(",")]
    if len(numbers) == 2 and None not in numbers and not box:
        row, column = (number for number in numbers if number is not None)
        return Region("pixel", (row, column, row + 1, column + 1))
    if kind not in REGIONS:
        raise UserError(f"--region {kind}: choose from {', '.join(REGIONS)}, or give a pixel Y,X")
    if (kind == "box") != (box is not None):
        raise UserError("--region box needs --area Y0,X0,Y1,X1, which goes with no other region")
    return Region(kind, box)


def area_of(region: Region, index: int, output: Tensor, truth: Tensor | None = None) -> Tensor:
    """Return the area (H, W), bool, of a class in an output (1, classes, H, W).

    Args:
        region: which area.
        index: the class.
        output: logits.
        truth: the true labels (H, W), for `truth`.

    Raises:
        UserError: the box is not within the output, or the area has no pixel.
    """
    height, width = output.shape[2:]
    if region.box:
        return box_area(region.box, height, width)
    if region.kind == "prediction":
        area = (output.argmax(1)[0] == index).cpu()
    elif region.kind == "truth":
        if truth is None:
            raise UserError("--region truth needs the masks of the images: --mask FILE …")
        area = truth == index
    else:
        area = torch.ones(height, width, dtype=torch.bool)
    return area


def box_area(box: Box, height: int, width: int) -> Tensor:
    """Return the area (H, W), bool, of a box in an output of H×W pixels.

    Raises:
        UserError: the box is not within the output.
    """
    top, left, bottom, right = box
    if bottom > height or right > width:
        name = ",".join(map(str, box))
        raise UserError(
            f"the area {name} is not within the output of {height}×{width} pixels (rows × columns)"
        )
    area = torch.zeros(height, width, dtype=torch.bool)
    area[top:bottom, left:right] = True
    return area


def class_area_target(index: int, area: Tensor, kind: str = "logit", name: str = "") -> Target:
    """Return y = Σ M · s_c, the sum of the scores of one class over an area.

    Args:
        index: number of the class.
        area: M, (H, W) or (B, H, W), bool or weights.
        kind: the score s of a pixel, `logit`, `log-odds` or `probability`, as for `class_scores`.
        name: name of the target; that of the class by default.

    Raises:
        UserError: no such kind; later, when it is computed: no such class, or the area has another size.
    """
    if kind not in _KINDS:
        raise UserError(f"there is no score {kind!r}; choose from {', '.join(_KINDS)}")

    def score(output: Tensor) -> Tensor:
        if not 0 <= index < output.shape[1]:
            raise UserError(f"there is no class {index}: the network tells {output.shape[1]} apart, from 0")
        scores = output[:, index]
        if kind == "probability":
            scores = output.softmax(1)[:, index]
        elif kind == "log-odds":
            others = torch.arange(output.shape[1], device=output.device) != index
            scores = scores - output[:, others].logsumexp(1)
        return _summed(scores, area)

    return Target(name or str(index), score)


def output_area_target(area: Tensor, name: str = "") -> Target:
    """Return y = Σ M · output of images (B, C, H, W), over all channels; arguments as `class_area_target`."""
    return Target(name or "area", lambda output: _summed(output.sum(1), area))


def output_box_target(box: Box) -> Target:
    """Return the sum of a box of an output of images (B, C, H, W), over all channels.

    Raises:
        UserError: later, when it is computed: the box is not within the output.
    """
    name = ",".join(map(str, box))
    return Target(f"area {name}", lambda output: _summed(output.sum(1), box_area(box, *output.shape[2:])))


def _summed(scores: Tensor, area: Tensor) -> Tensor:
    """Return Σ M · scores for scores (B, H, W): (B,)."""
    if area.shape[-2:] != scores.shape[-2:]:
        sizes = ("×".join(map(str, each.shape[-2:])) for each in (area, scores))
        raise UserError("an area of {} pixels does not fit an output of {}".format(*sizes))
    return (scores * area.to(scores)).sum((1, 2))


def share_inside(values: Tensor, area: Tensor) -> float:
    """Return the share of the magnitude of values (…, H, W) that lies in an area (H, W); NaN of none."""
    magnitudes = values.abs().reshape(-1, *area.shape).sum(0).double()
    return float((magnitudes * area.to(magnitudes)).sum() / magnitudes.sum())


def bounds(area: Tensor) -> Sequence[int]:
    """Return the smallest box (top, left, bottom, right) that holds an area (H, W)."""
    rows, columns = area.any(1).nonzero(), area.any(0).nonzero()
    return [int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1]
