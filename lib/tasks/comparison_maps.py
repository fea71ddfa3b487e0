"""Maps that are compared: those of methods, of controls, and of methods under noise or random weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.cli.comparison_flags import INPAINT
from lib.evaluation import controls, maps
from lib.explain import gradients
from lib.explain.baselines import baseline
from lib.explain.explanation import Explanation, Request
from lib.explain.methods import METHODS
from lib.models.network import Network
from lib.runtime.errors import UserError
from lib.tasks.explanation_panels import Question

# Methods whose maps stand for all in the controls that need one; the first that the network allows.
REFERENCES = ("grad-cam", "input-x-gradient", "occlusion")
# Fixed settings instead of measured ones, because the same command must give the same numbers.
_SETTINGS: dict[str, dict[str, Any]] = {"integrated-gradients": {"steps": 24, "batch-size": 8}}
# Methods that take more passes than this for a map are not asked a dozen times what noise does to it.
_MOST_PASSES = 64
_RADIUS, _DISTURBED = 0.02, 3  # of pixels, as Captum's sensitivity_max has it
_NOISE, _SMOOTHED = 0.1, 4  # standard deviation in pixels


class Found(NamedTuple):
    """Maps (T, H, W) of an image's targets, numbers of each target, and what they cost."""

    maps: Tensor
    numbers: list[dict[str, float | None]]
    passes: int = 0
    seconds: float = 0.0


def settings_of(method: str) -> Mapping[str, Any]:
    """Return the settings in which a method's options differ from their defaults."""
    return _SETTINGS.get(method, {})


def check(network: Network, method: str) -> str:
    """Return why a method cannot explain a network; an empty text if it can."""
    try:
        METHODS[method].check(network)
    except UserError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class MapSettings:
    """How maps are made.

    Attributes:
        removal: what removed parts show, which is the baseline of all methods that have one.
        seed: seed of that baseline.
        draws: seed of all else that is drawn, the image's own: so that intervals over images are over draws.
    """

    removal: str
    seed: int
    draws: int


def explain(question: Question, method: str, pixels: Tensor, asked: MapSettings) -> Explanation:
    """Return the explanation by a method of images (B, C, H, W), for the question's targets.

    Methods that have a baseline get the one of the measures, or these would judge another question.
    """
    entry = METHODS[method]
    settings: dict[str, Any] = {option.name: option.default for option in entry.options}
    settings |= {**settings_of(method), "seed": asked.draws}
    # In-painting shows the mean colour where nothing is left to paint with.
    kind = "mean" if asked.removal == INPAINT else asked.removal
    start = baseline(kind, pixels, seed=asked.seed) if entry.baseline else None
    return entry.explain(
        Request(question.network, pixels, question.targets, baseline=start, settings=settings)
    )


def _maps(found: Explanation, size: tuple[int, int]) -> Tensor:
    """Return the maps (T, B, H, W) of an explanation, which has one layer or none."""
    (values,) = found.maps(size).values()
    if found.parts is not None:  # the value of a part is spread over its pixels, so that sums are of parts
        sizes = torch.bincount(found.parts.cpu().flatten())
        values = values / sizes[found.parts.cpu()]
    return values.detach()


def of_method(question: Question, method: str, asked: MapSettings, *, probed: bool) -> Found:
    """Return a method's maps of the question's image and what is known of them without removals.

    Args:
        question: the network, the image, the targets.
        method: name of the method.
        asked: the settings.
        probed: whether to ask what noise and random weights do to the maps.
    """
    found = explain(question, method, question.pixels, asked)
    values = _maps(found, question.size)[:, 0]
    numbers: list[dict[str, float | None]] = [{} for _ in question.targets]
    if found.additivity is not None:
        for each, share in zip(numbers, found.additivity.gap_share[:, 0].tolist(), strict=True):
            each["completeness"] = share if share < float("inf") else None
    passes = found.forward_passes + found.backward_passes
    if probed and passes <= _MOST_PASSES * len(question.targets):
        _probe(question, method, asked, values, numbers)
    return Found(values, numbers, passes, found.seconds)


def _probe(
    question: Question,
    method: str,
    asked: MapSettings,
    values: Tensor,
    numbers: list[dict[str, float | None]],
) -> None:
    """Add to the numbers of each target what noise and random weights do to its map."""
    pixels, size = question.pixels, question.size
    generator = torch.Generator().manual_seed(asked.draws)
    shape = (_DISTURBED, *pixels.shape[1:])
    moved = (2 * torch.rand(shape, generator=generator) - 1) * _RADIUS
    noise = torch.randn(_SMOOTHED, *pixels.shape[1:], generator=generator) * _NOISE
    disturbed = _maps(explain(question, method, pixels + moved.to(pixels.device), asked), size)
    noisy = (pixels + noise.to(pixels.device)).clamp(0, 1)
    smooth = _maps(explain(question, method, noisy, asked), size).mean(1)
    with gradients.randomised(question.network.module, _layers(question.network), asked.draws):
        random = _maps(explain(question, method, pixels, asked), size)[:, 0]
        random_smooth = _maps(explain(question, method, noisy, asked), size).mean(1)
    for target, each in enumerate(numbers):
        each["max-sensitivity"] = maps.max_sensitivity(values[target], disturbed[target])
        each["randomisation"] = maps.similarity(values[target], random[target])
        each["randomisation-smooth"] = maps.similarity(smooth[target], random_smooth[target])


def _layers(network: Network) -> int:
    """Return the number of layers with weights of their own: all are drawn anew."""
    return sum(bool(list(module.parameters(recurse=False))) for module in network.module.modules())


def of_control(
    question: Question, control: str, asked: MapSettings, other: Question | None, reference: str
) -> Found | None:
    """Return the maps of a control, the same for all targets where it knows of none.

    Args:
        question: the network, the image, the targets.
        control: name of the control.
        asked: the settings.
        other: the question about another image, for the map of that; None if there is only one.
        reference: the method whose maps are the controls'.
    """
    count, (pixels,) = len(question.targets), question.pixels.cpu()
    if control == "control-other":
        if other is None:
            return None
        values = _maps(explain(other, reference, other.pixels, asked), other.size)[:, 0]
        values = gradients.upsample(values, question.size)
        values = values[torch.arange(count) % len(values)]
    elif control == "control-random":
        with gradients.randomised(question.network.module, _layers(question.network), asked.draws):
            values = _maps(explain(question, reference, question.pixels, asked), question.size)[:, 0]
    else:
        made = {
            "control-noise": lambda: controls.noise(pixels, asked.draws),
            "control-edges": lambda: controls.edges(pixels),
            "control-centre": lambda: controls.centre(question.size),
        }[control]()
        values = made.expand(count, -1, -1)
    return Found(values, [{} for _ in range(count)])
