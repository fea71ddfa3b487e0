"""Steps of run-grad-cam.py: class activation maps, guided backpropagation, check by re-drawn weights."""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.explain import activations, gradients
from lib.explain.explanation import Explanation
from lib.explain.methods import METHODS, Method, Request, drawn_by
from lib.explain.progress import Stopped, Watch
from lib.models.network import Network
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.tasks.explanation_job import Explained, Job
from lib.tasks.explanation_names import Naming
from lib.tasks.explanation_panels import Panel, Question, panels_of, targets_of
from lib.tasks.explanation_run import ExplanationRun, baseline_of


@dataclass(frozen=True)
class MapSettings(Settings):
    """The method of run-grad-cam.py, and what is drawn beside its maps.

    `options` holds the values of the methods' own options, by their names as typed.
    """

    method: str
    layer: Sequence[str] | None
    counterfactual: bool
    guided: bool
    rule: str
    randomise: int
    smoothgrad: int | None
    noise: float
    seed: int
    place: str
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "MapSettings":
        """Return the settings among `flags`."""
        names = [option.name for method in drawn_by("run-grad-cam.py").values() for option in method.options]
        options = {name: flags[name.replace("-", "_")] for name in names if name.replace("-", "_") in flags}
        return super().of({**flags, "options": options})

    @property
    def words(self) -> Naming:
        """What names of files say of these settings."""
        parts = [
            *(self.layer or ()),
            *(["against"] if self.counterfactual else []),
            *([self.rule] if self.guided else []),
            *([f"smoothgrad-{self.smoothgrad}"] if self.smoothgrad else []),
            *([f"randomise-{self.randomise}"] if self.randomise else []),
            *([self.place] if self.place != "receptive-field" else []),
        ]
        return Naming("" if self.method == "grad-cam" else self.method, tuple(parts))

    @property
    def entry(self) -> Method:
        """The method's entry in the table."""
        return METHODS[self.method]


def list_layers(run: ExplanationRun) -> None:
    """Print name, kind and size of each layer with a spatial map; the default layer is marked."""
    for network in run.networks:
        chosen = activations.default_layer(network.module, network.example)
        found = activations.spatial_layers(network.module, network.example)
        if len(run.networks) > 1:
            sys.stdout.write(f"{network.name}:\n")
        name, kind = (max(len(getattr(row, key)) for row in found) for key in ("name", "kind"))
        for row in found:
            size = "×".join(map(str, row.shape))
            mark = "  (default)" if row.name == chosen else ""
            sys.stdout.write(f"{row.name:<{name}}  {row.kind:<{kind}}  {size}{mark}\n")


def check(settings: MapSettings, typed: Mapping[str, Any]) -> None:
    """Raise a UserError if a flag does not suit the method, before anything is loaded."""
    method = settings.entry
    if not method.at_layers:
        for name in ("layer", "guided"):
            if name in typed:
                raise UserError(
                    f"--{name} goes with maps of layers, which --method {method.name} has none of"
                )
    own = [option.name for option in method.options]
    for name in settings.options:
        if name.replace("-", "_") in typed and name not in own:
            raise UserError(f"--{name} does not go with --method {method.name}")
    if "baseline" in typed and not method.baseline:
        raise UserError(f"--baseline does not go with --method {method.name}, which takes nothing away")


def explain(run: ExplanationRun, settings: MapSettings) -> None:
    """Explain all images of the run: a row of panels for each image, network and layer.

    Raises:
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """

    def explain_some(images: Sequence[Sequence[Question]], watch: Watch) -> list[Explained]:
        rows: list[list[list[Panel]]] = [[] for _ in images]
        try:
            for questions in zip(*images, strict=True):
                for alike in _alike(questions):
                    found = _rows(_Asked(run, settings, [questions[index] for index in alike], watch))
                    for index, its in zip(alike, found, strict=True):
                        rows[index] += its
        except Stopped:  # what is known of an image is drawn
            if not all(rows):
                raise
        return [Explained(each) for each in rows]

    job = Job(run, explain_some, settings, "forward passes", batch=_batch_size(settings, run.networks[0]))
    job.do()


def _alike(questions: Sequence[Question]) -> list[list[int]]:
    """Return the indices of the questions whose images have the same size, as one batch each."""
    sizes = list(dict.fromkeys(question.size for question in questions))
    return [[i for i, question in enumerate(questions) if question.size == size] for size in sizes]


def _batch_size(settings: MapSettings, network: Network) -> int:
    """Return how many images are explained in one pass.

    Methods of many forward passes make batches of them; noise is drawn for each image by itself.
    """
    method = settings.entry
    if method.baseline or method.name == "score-cam" or settings.smoothgrad or network.dense:
        return 1
    # On a CPU, larger batches are no faster.
    return settings.batch_size or (1 if network.device.type == "cpu" else 16)


def _layer_names(settings: MapSettings, question: Question) -> Sequence[str]:
    if not settings.entry.at_layers:
        return ()
    return settings.layer or [
        activations.default_layer(question.network.module, question.network.example_of(question.size))
    ]


@dataclass(frozen=True)
class _Asked:
    """Questions to one network about images of one size, and how they are to be answered."""

    run: ExplanationRun
    settings: MapSettings
    questions: Sequence[Question]
    watch: Watch

    def request(self, **more: Any) -> Request:
        """Return the request for the method, or for that of guided backpropagation."""
        targets = targets_of(self.questions)
        if self.settings.counterfactual:
            targets = [-target for target in targets]
        images = torch.cat([question.pixels for question in self.questions])
        network, place = self.questions[0].network, self.settings.place
        return Request(network, images, targets, place=place, watch=self.watch, **more)


# For each question, for each layer or for the input, the panels of its classes.
_Rows = list[list[list[Panel]]]


def _rows(asked: _Asked) -> _Rows:
    """Return the panels of each layer: of the trained network, then with more and more layers re-drawn."""
    originals = _panels(asked)
    # From the largest number of layers down, so that a number too large is reported before much is computed.
    depths = [_with_redrawn(asked, originals, count) for count in range(asked.settings.randomise, 0, -1)]
    return [
        [list(itertools.chain(*parts)) for parts in zip(*each, strict=True)]
        for each in zip(originals, *reversed(depths), strict=True)
    ]


def _with_redrawn(asked: _Asked, originals: _Rows, count: int) -> _Rows:
    """Return panels like `originals`, but of the network with its last `count` layers re-drawn."""
    network = asked.questions[0].network
    with gradients.randomised(network.module, count, asked.settings.seed) as redrawn:
        found = _panels(asked)
    return [
        [
            [_redrawn(*pair, redrawn) for pair in zip(row, before, strict=True)]
            for row, before in zip(*rows, strict=True)
        ]
        for rows in zip(found, originals, strict=True)
    ]


def _redrawn(panel: Panel, original: Panel, names: Sequence[str]) -> Panel:
    correlation = rank_correlation(panel.values, original.values)
    return dataclasses.replace(
        panel,
        redrawn=tuple(names),
        note=f"{panel.note}\nre-drawn down to {names[-1]}\nrank correlation {correlation:.2f}",
        numbers={**panel.numbers, "rank_correlation": correlation},
    )


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two maps (Adebayo et al. 2018); NaN if one is constant."""
    from scipy import stats  # imported here because it is slow to import and seldom needed

    ranks = [stats.rankdata(values) for values in (a.flatten().numpy(), b.flatten().numpy())]
    if min(map(np.ptp, ranks)) == 0:
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _panels(asked: _Asked) -> _Rows:
    """Return, for each question, for each layer or for the input, the panels of all classes."""
    settings, method = asked.settings, asked.settings.entry
    start = None
    if method.baseline:
        each = [baseline_of(asked.run.asked, question, cropped=True) for question in asked.questions]
        start = torch.stack(each)
    found = method.explain(
        asked.request(
            layers=_layer_names(settings, asked.questions[0]),
            baseline=start,
            settings=_own_options(settings),
        )
    )
    title = _title(method.name, settings.counterfactual)

    def note(panel: Panel) -> str:
        return f"{title}, max {panel.values.max():.3g}" if panel.layer else title

    rows = [
        panels_of(question, method, found.of_image(index), note)
        for index, question in enumerate(asked.questions)
    ]
    if not settings.guided:
        return rows
    smoothing = {"smoothgrad": settings.smoothgrad, "noise": settings.noise, "seed": settings.seed}
    fine = METHODS[settings.rule].explain(asked.request(settings=smoothing))
    return [_guided(its, fine.of_image(index), settings) for index, its in enumerate(rows)]


def _guided(rows: Sequence[Sequence[Panel]], fine: Explanation, settings: MapSettings) -> list[list[Panel]]:
    """Return rows in which each class activation map is followed by those of guided backpropagation."""
    return [
        [
            panel
            for index, cam in enumerate(row)
            for panel in _with_guided(cam, fine.values[""][index, 0].cpu(), settings, fine.record(index))
        ]
        for row in rows
    ]


def _own_options(settings: MapSettings) -> dict[str, Any]:
    return {option.name: settings.options[option.name] for option in settings.entry.options}


def _with_guided(
    cam: Panel, values: Tensor, settings: MapSettings, numbers: Mapping[str, Any]
) -> list[Panel]:
    """Return panels of a class activation map, of its class's gradients (C, H, W), and of their product."""
    product = gradients.guided_grad_cam(cam.map[None, None], values[None, None])[0, 0]
    found = {settings.rule: values, f"{settings.rule}-{settings.method}": product}
    return [
        cam,
        *(
            dataclasses.replace(
                cam,
                method=method,
                map=each.sum(0),
                raw_map=None,
                signed=True,
                note=_title(method, settings.counterfactual),
                numbers=numbers,
            )
            for method, each in found.items()
        ),
    ]


def _title(name: str, counterfactual: bool) -> str:
    """Return the title of a method, or of the product of two that are joined by a hyphen."""
    parts = [name] if name in METHODS else name.split("-", 1)
    title = " × ".join(METHODS[part].title for part in parts)
    return f"{title} against it" if counterfactual else title
