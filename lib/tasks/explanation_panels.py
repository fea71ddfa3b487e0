"""Panels: one map each of an explanation, with its record, its place in a file of values, and on a sheet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.data.image_inputs import ImageInput
from lib.explain.explanation import Explanation
from lib.explain.methods import Method
from lib.explain.targets import Target, class_scores, class_target, scores_of
from lib.models import outputs
from lib.models.network import Network
from lib.runtime.errors import warn


@dataclass(frozen=True)
class Question:
    """A network, an image, and the classes whose scores are to be explained: one or more rows of a sheet.

    Attributes:
        network: the network.
        image: the image.
        classes: indices of the classes to explain; of other targets, the number of each.
        score: kind of their scores: `logit`, `log-odds` or `probability`; of other targets, what they are.
        others: targets to explain that are no classes; they have no probability.
        areas: for classes of a segmentation, the area (H, W) of each in `others`, bool; their probability is
            the mean over it.
    """

    network: Network
    image: ImageInput
    classes: Sequence[int]
    score: str = "logit"
    others: Sequence[Target] = ()
    areas: Sequence[Tensor] = ()

    @property
    def pixels(self) -> Tensor:
        """The image as a batch (1, C, H, W) in [0, 1] on the network's device."""
        return self.image.pixels[None].to(self.network.device)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image as the network sees it."""
        return self.image.size

    @property
    def targets(self) -> list[Target]:
        """The scores of the classes, or the other targets."""
        network = self.network
        return list(self.others) or [
            class_target(index, self.score, network.class_name(index), independent=network.independent)
            for index in self.classes
        ]

    @property
    def classes_told(self) -> int:
        """Number of classes that the network tells apart, if they have names."""
        return len(self.network.classes)

    def name_of(self, index: int) -> str:
        """Return the name of the class or target of this number."""
        others = dict(zip(self.classes, self.others, strict=False))
        return others[index].name if others else self.network.class_name(index)


def targets_of(questions: Sequence[Question]) -> list[Target]:
    """Return the scores of the classes of some questions to one network, each image's own, as targets."""
    first = questions[0]
    if all(question.classes == first.classes for question in questions):
        return first.targets
    network = first.network

    def target(classes: tuple[int, ...]) -> Target:
        scores = class_scores(torch.tensor([classes]), first.score, independent=network.independent)
        return Target(",".join(map(network.class_name, classes)), lambda output: scores(output)[0])

    return [target(classes) for classes in zip(*(question.classes for question in questions), strict=True)]


class Answer(NamedTuple):
    """A network's output for a class: the class index, its probability in [0, 1] and its score.

    Targets that are no classes have no probability: None.
    """

    target: int
    probability: float | None
    score: float


def answers(question: Question, output: Tensor) -> list[Answer]:
    """Return the probability and the score of each class of `question` from the logits (1, outputs).

    A network that averages its answers over views has one more forward pass for each, for its probability.

    Raises:
        UserError: the logits are not finite.
    """
    network = question.network
    outputs.check_finite(output, network.name)
    scores = scores_of(question.targets)(output)[:, 0].tolist()
    if question.areas:
        every = outputs.probabilities(output)[0]
        means = [
            float(every[index][area.to(every.device)].mean())
            for index, area in zip(question.classes, question.areas, strict=True)
        ]
        return [Answer(*each) for each in zip(question.classes, means, scores, strict=True)]
    if question.others:
        return [Answer(index, None, score) for index, score in zip(question.classes, scores, strict=True)]
    with torch.no_grad():
        every = (
            network.probabilities(question.pixels)
            if network.views > 1
            else outputs.probabilities(output, network.independent)
        )
    probabilities = every[0, list(question.classes)]
    return [Answer(*each) for each in zip(question.classes, probabilities.tolist(), scores, strict=True)]


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
        return self.question.name_of(self.answer.target)

    @property
    def area(self) -> Tensor | None:
        """The area of the output (H, W), bool, that is explained; None for the whole answer."""
        if not self.question.areas:
            return None
        return self.question.areas[list(self.question.classes).index(self.answer.target)]

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
            **({} if self.answer.probability is None else {"probability": self.answer.probability}),
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


def title_of(record: Mapping[str, Any]) -> str:
    """Return the title of a panel from its record: the class with its probability, or a target's name."""
    probability = record.get("probability")
    return record["class"] if probability is None else f"{record['class']}: {probability:.3f}"


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
    for layer, maps in found.maps(question.size).items():
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
    "nothing positive": "try --counterfactual, which shows what lowers the score",
    "nothing changes the score": "try another --baseline",
}
