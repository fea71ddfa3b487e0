"""Panels: one map each of an explanation, with its record, its place in a file of values, and on a sheet."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.data.image_inputs import ImageInput
from lib.explain.explanation import Explanation
from lib.explain.methods import Method
from lib.explain.targets import Target, class_target, scores_of
from lib.figures import explanations as pictures
from lib.models import outputs
from lib.models.network import Network
from lib.runtime.errors import UserError, warn
from lib.runtime.files import replaced

# The most panels on one line of a sheet, beside the image.
MOST_PANELS = 9


@dataclass(frozen=True)
class Question:
    """A network, an image, and the classes whose scores are to be explained: one or more rows of a sheet.

    Attributes:
        network: the network.
        image: the image.
        classes: indices of the classes to explain.
        score: kind of their scores: `logit`, `log-odds` or `probability`.
    """

    network: Network
    image: ImageInput
    classes: Sequence[int]
    score: str = "logit"

    @property
    def pixels(self) -> Tensor:
        """The image as a batch (1, C, H, W) in [0, 1] on the network's device."""
        return self.image.pixels[None].to(self.network.device)

    @property
    def targets(self) -> list[Target]:
        """The scores of the classes."""
        network = self.network
        return [
            class_target(index, self.score, network.class_name(index), independent=network.independent)
            for index in self.classes
        ]


class Answer(NamedTuple):
    """A network's output for a class: the class index, its probability in [0, 1] and its score."""

    target: int
    probability: float
    score: float


def answers(question: Question, output: Tensor) -> list[Answer]:
    """Return the probability and the score of each class of `question` from the logits (1, outputs).

    A network that averages its answers over views has one more forward pass for each, for its probability.
    """
    network = question.network
    with torch.no_grad():
        every = (
            network.probabilities(question.pixels)
            if network.views > 1
            else outputs.probabilities(output, network.independent)
        )
    probabilities = every[0, list(question.classes)]
    scores = scores_of(question.targets)(output)[:, 0]
    return [
        Answer(*each) for each in zip(question.classes, probabilities.tolist(), scores.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Panel:
    """One explanation map: the evidence in an image for a class.

    Attributes:
        question: the network, the image and the classes.
        answer: the network's output for the class of this map.
        method: name of the method, e.g. `grad-cam`.
        map: (H, W) at the size of the image, on the CPU.
        layer: name of the layer of the map; empty for a map of the input.
        raw_map: (h, w) the map before it was upsampled; None if it was not.
        signed: whether negative values are evidence against the class.
        parts: the part of each pixel (H, W), if the map is one of n parts.
        part_values, standard_errors: of these parts, (n,).
        place: where the layer's map is drawn: `receptive-field`, each cell where it looks, or `grid`.
        redrawn: names of the layers with re-initialised weights, the last first.
        note: text above the map, in addition to the class and its probability.
        numbers: further numbers for standard output and `--json`.
    """

    question: Question
    answer: Answer
    method: str
    map: Tensor
    layer: str = ""
    raw_map: Tensor | None = None
    signed: bool = False
    parts: Tensor | None = None
    part_values: Tensor | None = None
    standard_errors: Tensor | None = None
    place: str = "grid"
    redrawn: tuple[str, ...] = ()
    note: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.question.network.class_name(self.answer.target)

    @property
    def values(self) -> Tensor:
        """The map as the method computed it, before upsampling."""
        return self.map if self.raw_map is None else self.raw_map

    def record(self) -> dict[str, Any]:
        """Return the numbers of the panel for standard output and `--json`."""
        network, numbers = self.question.network, dict(self.numbers)
        of_image = {"image": self.question.image.name, "model": network.name}
        of_class = {
            "class": self.class_name,
            "target": self.answer.target,
            "probability": self.answer.probability,
            **({"views": network.views} if network.views > 1 else {}),
        }
        if self.parts is not None:
            how = {name: numbers.pop(name) for name in ("estimator", "players")}
            return of_image | how | of_class | numbers
        return {
            **of_image,
            **({} if network.epoch is None else {"epoch": network.epoch}),
            **({"layer": self.layer, "place": self.place} if self.layer else {}),
            "method": self.method,
            **of_class,
            "score": self.answer.score,
            "map_minimum": float(self.values.min()),
            "map_maximum": float(self.values.max()),
            "map_mean": float(self.values.mean()),
            "zero_share": float((self.values == 0).float().mean()),
            **({"redrawn": ",".join(self.redrawn)} if self.redrawn else {}),
            **numbers,
        }


def panels_of(
    question: Question, method: Method, found: Explanation, note: Callable[[Panel], str] = lambda _panel: ""
) -> list[list[Panel]]:
    """Return, for each layer or for the input, the panels of the classes of `question`.

    Args:
        question: the question.
        method: the method that was asked.
        found: its explanation of the question's one image.
        note: function that returns the text above a panel's map.
    """
    said = answers(question, found.output)
    if found.parts is not None and found.additivity is not None:
        # Games are evaluated in float64.
        full = found.additivity.full[:, 0].tolist()
        said = [answer._replace(score=score) for answer, score in zip(said, full, strict=True)]
    rows = []
    for layer, maps in found.maps(question.network.size).items():
        own = found.values[layer].cpu()
        row = [
            Panel(
                question,
                answer,
                method.name,
                maps[index, 0],
                layer,
                own[index, 0] if layer else None,
                found.signed,
                found.parts,
                None if found.parts is None else own[index, 0],
                None if found.standard_errors is None else found.standard_errors[index, 0],
                place="receptive-field" if layer in found.places else "grid",
                numbers=found.record(index),
            )
            for index, answer in enumerate(said)
        ]
        reasons = [found.why_zero(layer, index) for index in range(len(said))]
        _warn_of_zeros(row, reasons)
        rows.append([_annotated(panel, note(panel), why) for panel, why in zip(row, reasons, strict=True)])
    return rows


def _annotated(panel: Panel, note: str, why_zero: str) -> Panel:
    if not why_zero:
        return replace(panel, note=note)
    return replace(panel, note=f"{note}\n{why_zero}", numbers={**panel.numbers, "zero_because": why_zero})


def _warn_of_zeros(row: Sequence[Panel], reasons: Sequence[str]) -> None:
    """Warn of the panels of a row that are zero everywhere: say why, and what to try."""
    for why in dict.fromkeys(filter(None, reasons)):
        empty = [panel for panel, reason in zip(row, reasons, strict=True) if reason == why]
        classes = ", ".join(panel.class_name for panel in empty)
        of = f"{empty[0].question.image.name}, {empty[0].question.network.name}"
        warn(f"the map of {classes} ({of}) is zero everywhere: {why}; {_REMEDIES[why]}")


_REMEDIES = {
    "the score has no gradient": "try --score logit, or --method occlusion, which needs no gradient",
    "nothing positive": "try --counterfactual, which shows what speaks against the class",
    "nothing changes the score": "try another --baseline",
}


def as_json(records: Sequence[dict[str, Any]]) -> bytes:
    """Return records of plain values as JSON, which has no NaN or infinity: these become null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plain_records = [{key: plain(value) for key, value in record.items()} for record in records]
    return f"{json.dumps(plain_records, indent=1, ensure_ascii=False)}\n".encode()


def save_values(path: Path, panels: Sequence[Panel]) -> None:
    """Save the arrays behind panels as an .npz file, one row per panel in reading order.

    The arrays are maps (P, H, W) at input size; raw_maps (P, h, w) if any map was coarser, each in the upper
    left corner, of size raw_sizes (P, 2), with NaN outside; inputs (P, H, W, 3) uint8; names, models, layers,
    methods, classes, redrawn (P,) text; targets, probabilities, scores (P,); epochs (P,), −1 if unknown.

    Of values of parts, there are no layers, methods, redrawn and epochs, but empty_scores, evaluations (P,);
    values, standard_errors (P, players), NaN at the end if an image has fewer players than others; player_map
    (H, W), or (P, H, W) if it differs between images.

    Raises:
        UserError: the maps are of different sizes.
        RunFailed: the file cannot be written.
    """
    if len({panel.map.shape for panel in panels}) > 1:
        raise UserError(f"{path} cannot hold maps of different sizes: ask the networks one by one")
    records = [panel.record() for panel in panels]
    of_parts = panels[0].parts is not None
    arrays: dict[str, Any] = {
        "maps": np.stack([panel.map.numpy() for panel in panels]),
        **_raw_maps(panels),
        "inputs": np.stack([as_bytes(panel.question.image.pixels) for panel in panels]),
        "names": np.array([record["image"] for record in records]),
        "models": np.array([record["model"] for record in records]),
        "layers": np.array([panel.layer for panel in panels]),
        "methods": np.array([panel.method for panel in panels]),
        "classes": np.array([panel.class_name for panel in panels]),
        "redrawn": np.array([",".join(panel.redrawn) for panel in panels]),
        "epochs": np.array([record.get("epoch", -1) for record in records]),
        "targets": np.array([panel.answer.target for panel in panels]),
        "probabilities": np.array([panel.answer.probability for panel in panels]),
        "scores": np.array([panel.answer.score for panel in panels]),
        **(_of_parts(panels) if of_parts else {}),
    }
    left_out = ("layers", "methods", "redrawn", "epochs") if of_parts else ()
    with replaced(path) as file:
        np.savez_compressed(file, **{name: each for name, each in arrays.items() if name not in left_out})


def _raw_maps(panels: Sequence[Panel]) -> dict[str, np.ndarray]:
    raw = [np.empty((0, 0)) if panel.raw_map is None else panel.raw_map.numpy() for panel in panels]
    sizes = np.array([each.shape for each in raw])
    if not sizes.any():
        return {}
    maps = np.full((len(raw), *sizes.max(0)), np.nan, np.float32)
    for place, each in zip(maps, raw, strict=True):
        place[: each.shape[0], : each.shape[1]] = each
    return {"raw_maps": maps, "raw_sizes": sizes}


def _of_parts(panels: Sequence[Panel]) -> dict[str, np.ndarray]:
    maps = [panel.parts for panel in panels if panel.parts is not None]
    same = all(torch.equal(each, maps[0]) for each in maps)
    return {
        "empty_scores": np.array([panel.numbers["value_empty"] for panel in panels]),
        "evaluations": np.array([panel.numbers["evaluations"] for panel in panels]),
        "values": _side_by_side([panel.part_values for panel in panels]),
        "standard_errors": _side_by_side([panel.standard_errors for panel in panels]),
        "player_map": maps[0].numpy() if same else torch.stack(maps).numpy(),
    }


def _side_by_side(rows: Sequence[Tensor | None]) -> np.ndarray:
    """Return arrays (n,) of different lengths n as rows, padded with NaN on the right."""
    arrays = [row.numpy() for row in rows if row is not None]
    width = max(map(len, arrays))
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in arrays])


def lines_of(rows: Iterable[Sequence[Panel]]) -> list[list[pictures.Tile]]:
    """Return the lines of a sheet; a row with too many panels takes several lines."""
    return [_tiles(line) for row in rows for line in _broken(row)]


def _broken(row: Sequence[Panel]) -> list[list[Panel]]:
    """Split a row into lines between depths of re-initialisation, or else between classes."""
    several = len({panel.redrawn for panel in row}) > 1
    lines: list[list[Panel]] = [[]]
    for _, group in itertools.groupby(row, key=lambda p: p.redrawn if several else p.answer.target):
        panels = list(group)
        if lines[-1] and len(lines[-1]) + len(panels) > MOST_PANELS:
            lines.append([])
        lines[-1] += panels
    return lines


def _tiles(row: Sequence[Panel]) -> list[pictures.Tile]:
    """Return the tiles of a line: the image that the network sees, then the maps."""
    pixels = as_bytes(row[0].question.image.pixels)
    return [
        pictures.Tile(_describe(row[0]), pixels),
        *(
            pictures.Tile(
                [f"{panel.class_name}: {panel.answer.probability:.3f}", *panel.note.splitlines()],
                pixels,
                panel.map.numpy(),
                panel.signed,
            )
            for panel in row
        ),
    ]


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
    epochs = "" if network.epoch is None else f", {network.epoch + 1} epoch{'s' if network.epoch else ''}"
    views = "" if network.views == 1 else f", mean of {network.views} views"
    return [image.name + label, network.name + epochs + views]


def as_bytes(pixels: Tensor) -> np.ndarray:
    """Return pixels (C, H, W) in [0, 1] as (H, W, 3) uint8."""
    colour = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    return (colour * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
