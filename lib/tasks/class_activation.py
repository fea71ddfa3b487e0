"""Steps of run-grad-cam.py: class activation maps, guided backpropagation, check by re-drawn weights."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.explain import activations, gradients
from lib.explain.methods import METHODS, Request
from lib.explain.progress import Watch
from lib.explain.targets import Scores, class_scores
from lib.models.network import Network
from lib.runtime.errors import UserError
from lib.tasks.explanation_run import Answer, ExplanationRun, Panel, Question, answers, baseline_of


def list_layers(run: ExplanationRun) -> None:
    """Print name, kind and size of each layer with a spatial map; the default layer is marked."""
    for subject in run.subjects:
        example = _example(subject)
        chosen = activations.default_layer(subject.module, example)
        found = activations.spatial_layers(subject.module, example)
        if len(run.subjects) > 1:
            sys.stdout.write(f"{subject.name}:\n")
        name, kind = (max(len(getattr(row, key)) for row in found) for key in ("name", "kind"))
        for row in found:
            size = "×".join(map(str, row.shape))
            mark = "  (default)" if row.name == chosen else ""
            sys.stdout.write(f"{row.name:<{name}}  {row.kind:<{kind}}  {size}{mark}\n")


def _example(subject: Network) -> Tensor:
    pixels = torch.full((1, subject.channels, subject.size, subject.size), 0.5, device=subject.device)
    return subject.normalise(pixels)


def check(flags: SimpleNamespace, typed: Mapping[str, Any]) -> None:
    """Raise a UserError if a flag does not suit the method, before anything is loaded."""
    method = METHODS[flags.method]
    if not method.at_layers:
        for name in ("layer", "guided"):
            if name in typed:
                raise UserError(
                    f"--{name} goes with maps of layers, which --method {method.name} has none of"
                )
    for option in (option for each in METHODS.values() for option in each.options):
        if option.name.replace("-", "_") in typed and option not in method.options:
            raise UserError(f"--{option.name} does not go with --method {method.name}")
    if "baseline" in typed and not method.needs_baseline:
        raise UserError(f"--baseline does not go with --method {method.name}, which takes nothing away")


def explain(run: ExplanationRun) -> None:
    """Explain every question of the run: a row of panels for each image, network and layer.

    Raises:
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """
    questions = [question for asked in run.questions() for question in asked]
    layer_names = {id(subject): _layer_names(run, subject) for subject in run.subjects}
    run.explain_each(
        questions,
        lambda question, watch: _rows(run, question, layer_names[id(question.subject)], watch),
        unit="forward passes",
        animate=run.flags.animate,
    )


def _layer_names(run: ExplanationRun, subject: Network) -> Sequence[str]:
    if not METHODS[run.flags.method].at_layers:
        return [""]
    return run.flags.layer or [activations.default_layer(subject.module, _example(subject))]


def _rows(
    run: ExplanationRun, question: Question, layer_names: Sequence[str], watch: Watch
) -> list[list[Panel]]:
    """Return the panels of each layer: of the trained network, then with more and more layers re-drawn."""
    originals = _panels(run, question, layer_names, watch)
    # From the largest number of layers down, so that a number too large is reported before much is computed.
    depths = [
        _with_redrawn(run, question, originals, count, watch) for count in range(run.flags.randomise, 0, -1)
    ]
    return [list(itertools.chain(*parts)) for parts in zip(originals, *reversed(depths), strict=True)]


def _with_redrawn(
    run: ExplanationRun, question: Question, originals: Sequence[Sequence[Panel]], count: int, watch: Watch
) -> list[list[Panel]]:
    """Return panels like `originals`, but of the network with its last `count` layers re-drawn."""
    names = [row[0].layer for row in originals]
    with gradients.randomised(question.subject.module, count, run.flags.seed) as redrawn:
        rows = _panels(run, question, names, watch)
    return [
        [_redrawn(*pair, redrawn) for pair in zip(row, before, strict=True)]
        for row, before in zip(rows, originals, strict=True)
    ]


def _redrawn(panel: Panel, original: Panel, names: Sequence[str]) -> Panel:
    correlation = rank_correlation(panel.values, original.values)
    return dataclasses.replace(
        panel,
        redrawn=tuple(names),
        note=f"{panel.note}\nre-drawn down to {names[-1]}\nrank correlation {correlation:.2f}",
        numbers=panel.numbers | {"rank_correlation": correlation},
    )


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two maps (Adebayo et al. 2018); NaN if one is constant."""
    from scipy import stats  # imported here because it is slow to import and seldom needed

    ranks = [stats.rankdata(values) for values in (a.flatten().numpy(), b.flatten().numpy())]
    if min(map(np.ptp, ranks)) == 0:
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _panels(
    run: ExplanationRun, question: Question, layer_names: Sequence[str], watch: Watch
) -> list[list[Panel]]:
    """Return, for each layer, the panels of all classes."""
    rows = _maps(run, question, layer_names, watch)
    if not run.flags.guided:
        return rows
    values, numbers = _guided(run, question)
    return [
        [panel for each in zip(row, values, strict=True) for panel in _with_guided(*each, run, numbers)]
        for row in rows
    ]


def _scores(run: ExplanationRun, question: Question) -> Scores:
    scores = class_scores(question.classes, run.flags.score)
    return (lambda output: -scores(output)) if run.flags.counterfactual else scores


def _maps(
    run: ExplanationRun, question: Question, layer_names: Sequence[str], watch: Watch
) -> list[list[Panel]]:
    """Return the maps of `--method`, for each layer (or for the image itself) and each class."""
    flags, subject, started = run.flags, question.subject, time.perf_counter()
    method = METHODS[flags.method]
    baseline = baseline_of(flags, question, cropped=True)[None] if method.needs_baseline else None
    request = Request(
        subject.module,
        subject.normalise(question.pixels),
        _scores(run, question),
        layer_names if method.at_layers else (),
        None if baseline is None else subject.normalise(baseline),
        {option.name: getattr(flags, option.name.replace("-", "_")) for option in method.options},
        watch,
    )
    found = method.explain(request)
    costs = _costs(found.forward_passes, found.backward_passes, started)
    said = answers(question, found.output, flags.score)
    title = _title(flags.method, flags.counterfactual)

    def panel(layer: str, answer: Answer, values: Tensor) -> Panel:
        if not method.at_layers:
            summed = values.sum(0) if values.dim() == 3 else values  # over colours
            return Panel(
                question, answer, method.name, summed, signed=method.signed, note=title, numbers=costs
            )
        note = f"{title}, max {values.max():.3g}"
        large = gradients.upsample(values, subject.size)
        return Panel(
            question, answer, method.name, large, layer, values, method.signed, note=note, numbers=costs
        )

    return [
        [panel(layer, *each) for each in zip(said, found.values[layer][:, 0].cpu(), strict=True)]
        for layer in layer_names
    ]


def _guided(run: ExplanationRun, question: Question) -> tuple[Tensor, dict[str, float]]:
    """Return the gradients of each class by `--rule`, (T, C, H, W), and their costs."""
    flags, subject, started = run.flags, question.subject, time.perf_counter()
    images, scores = subject.normalise(question.pixels), _scores(run, question)
    rule = METHODS[flags.rule]

    def explain(shown: Tensor) -> Tensor:
        return rule.explain(Request(subject.module, shown, scores)).values[""]

    if flags.smooth:
        values = gradients.smooth(explain, images, samples=flags.smooth, noise=flags.noise, seed=flags.seed)
    else:
        values = explain(images)
    values, runs = values[:, 0].cpu(), flags.smooth or 1
    return values, _costs(runs, runs * len(question.classes), started)


def _with_guided(cam: Panel, values: Tensor, run: ExplanationRun, costs: dict) -> list[Panel]:
    """Return panels of a class activation map, of its class's gradients (C, H, W), and of their product."""
    flags = run.flags
    assert cam.raw_map is not None  # `check` allows --guided only for maps of layers, which are upsampled
    product = gradients.guided_grad_cam(cam.raw_map[None, None], values[None, None])[0, 0]
    found = {flags.rule: values, f"{flags.rule}-{flags.method}": product}
    return [
        cam,
        *(
            dataclasses.replace(
                cam,
                method=method,
                map=each.sum(0),
                raw_map=None,
                signed=True,
                note=_title(method, flags.counterfactual),
                numbers=costs,
            )
            for method, each in found.items()
        ),
    ]


def _title(name: str, counterfactual: bool) -> str:
    """Return the title of a method, or of the product of two that are joined by a hyphen."""
    parts = [name] if name in METHODS else name.split("-", 1)
    title = " × ".join(METHODS[part].title for part in parts)
    return f"{title} against it" if counterfactual else title


def _costs(forward: int, backward: int, started: float) -> dict[str, float]:
    return {
        "forward_passes": forward,
        "backward_passes": backward,
        "seconds": round(time.perf_counter() - started, 4),
    }
