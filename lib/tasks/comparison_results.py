"""What a comparison finds: plain values of each image, network and method."""

from dataclasses import dataclass, field
from typing import NamedTuple

from lib.tasks.explanation_run import ExplanationRun


class Row(NamedTuple):
    """What a method or a control says of one image: plain values, which can be sent to another rank.

    Attributes:
        image, network: their numbers.
        method: its name.
        key: the name of the kept result.
        numbers: for each target, the measures by name; None where one is not defined.
        passes, seconds: what the maps cost.
        reused: whether it is a kept result of an earlier run.
    """

    image: int
    network: int
    method: str
    key: str
    numbers: list[dict[str, float | None]]
    passes: int
    seconds: float
    reused: bool


class Told(NamedTuple):
    """What a network says of one image.

    Attributes:
        image, network: their numbers.
        targets: names of the targets.
        answers: their scores.
        truth: how the Shapley values were found, and the mean standard error as a share of their spread.
    """

    image: int
    network: int
    targets: list[str]
    answers: list[float]
    truth: tuple[str, float]


@dataclass
class Found:
    """The results of a comparison.

    Attributes:
        run: the run.
        rows: the rows of all images, in order.
        told: what the networks say of the images.
        bad: numbers of images that could not be read, with --skip-bad.
    """

    run: ExplanationRun
    rows: list[Row] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)

    @property
    def good(self) -> list[int]:
        """Numbers of the images that could be read."""
        return [number for number in range(len(self.names)) if number not in self.bad]

    @property
    def names(self) -> list[str]:
        """Names of the images."""
        return self.run.names
