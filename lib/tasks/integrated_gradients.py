"""Steps of run-integrated-gradients.py: attributions of pixels, and how exactly they add up to the score."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain import gradients
from lib.explain.integrated_gradients import Attributions, integrated_gradients
from lib.explain.progress import Watch
from lib.explain.targets import class_scores
from lib.runtime.errors import warn
from lib.tasks.explanation_run import Answer, ExplanationRun, Panel, Question, answers, baseline_of


def explain(run: ExplanationRun) -> None:
    """Explain every question of the run: a row of panels for each image and network.

    Raises:
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """
    questions = [question for asked in run.questions() for question in asked]
    run.explain_each(questions, lambda question, watch: [_row(run, question, watch)], unit="gradients")


def _row(run: ExplanationRun, question: Question, watch: Watch) -> list[Panel]:
    """Return a panel of attributions for each class.

    Raises:
        Stopped: the run was interrupted before there were any.
    """
    flags, subject, started = run.flags, question.subject, time.perf_counter()
    start = baseline_of(flags, question, cropped=True)
    scores = class_scores(question.classes, flags.score)
    found: list[_Sums] = []

    def attribute(shown: Tensor) -> Tensor:
        each = integrated_gradients(
            lambda points: scores(subject.logits(points)),
            shown[0],
            start,
            rule=flags.rule,
            steps=flags.steps,
            tolerance=flags.tolerance,
            batch_size=flags.batch_size,
            watch=watch,
        )
        found.append(_Sums.of(each))
        return each.values

    if flags.smooth:
        values = gradients.smooth(
            attribute, question.pixels, samples=flags.smooth, noise=flags.noise, seed=flags.seed
        )
    else:
        values = attribute(question.pixels)
    with torch.no_grad():
        said = answers(question, subject.logits(question.pixels), flags.score)
    sums = [_Completeness.of(found, index) for index in range(len(said))]
    _warn(run, question, sums)
    maps = values.sum(1).cpu()
    seconds = round(time.perf_counter() - started, 4)
    return [_panel(run, question, *each, seconds) for each in zip(said, maps, sums, strict=True)]


class _Sums(NamedTuple):
    """The scalars of the attributions of one (noisy) image; for the fields, see `Attributions`."""

    score: Tensor
    baseline_score: Tensor
    gap: Tensor
    change: float
    steps: int
    evaluations: int

    @classmethod
    def of(cls, attributions: Attributions) -> "_Sums":
        return cls(*(getattr(attributions, name) for name in cls._fields))


class _Completeness(NamedTuple):
    """How exactly the attributions of one class add up; difference and gap are means over noisy images.

    Attributes:
        baseline_score: F(x′).
        difference: F(x) − F(x′).
        gap: sum of the attributions less the difference.
        change: largest relative change of the map at the last trebling of the steps; NaN with `--steps`.
        steps: largest number of steps.
        evaluations: total number of points at which gradients were computed.
        images: number of (noisy) images.
    """

    baseline_score: float
    difference: float
    gap: float
    change: float
    steps: int
    evaluations: int
    images: int

    @classmethod
    def of(cls, found: Sequence[_Sums], index: int) -> "_Completeness":
        count = len(found)
        return cls(
            baseline_score=float(found[0].baseline_score[index]),
            difference=sum(float((each.score - each.baseline_score)[index]) for each in found) / count,
            gap=sum(float(each.gap[index]) for each in found) / count,
            change=max(each.change for each in found),
            steps=max(each.steps for each in found),
            evaluations=sum(each.evaluations for each in found),
            images=count,
        )

    @property
    def gap_share(self) -> float:
        """The gap as a share of the difference."""
        return abs(self.gap / self.difference) if self.difference else math.inf if self.gap else 0.0

    def within(self, tolerance: float) -> bool:
        """Return whether the steps were enough; a change of NaN (given number of steps) counts as small."""
        return self.gap_share <= tolerance and not self.change > tolerance


def _warn(run: ExplanationRun, question: Question, sums: Sequence[_Completeness]) -> None:
    flags = run.flags
    short = [index for index, each in enumerate(sums) if not each.within(flags.tolerance)]
    if short and flags.steps is None:
        worst = max(short, key=lambda index: sums[index].gap_share)
        name = question.subject.classes[question.classes[worst]]
        warn(
            f"{question.picture.name}: {sums[worst].steps} steps do not bring {len(short)} of {len(sums)} "
            f"maps within --tolerance {flags.tolerance:g}; that of {name} misses "
            f"{100 * sums[worst].gap_share:.2g} % of the difference"
        )


def _panel(
    run: ExplanationRun, question: Question, answer: Answer, map_: Tensor, sums: _Completeness, seconds: float
) -> Panel:
    flags = run.flags
    return Panel(
        question,
        answer,
        "integrated-gradients",
        map_,
        signed=True,
        note=(
            f"{flags.score} {_spell(answer.score)}, baseline's {_spell(sums.baseline_score)}\n"
            f"gap {_spell(sums.gap, '.1e')} ({100 * sums.gap_share:.2g} %), {sums.steps} steps"
        ),
        numbers={
            "baseline": flags.baseline,
            "rule": flags.rule,
            "baseline_score": sums.baseline_score,
            "score_difference": sums.difference,
            "completeness_gap": sums.gap,
            "gap_share": sums.gap_share,
            "map_change": sums.change,
            **({} if flags.steps else {"converged": sums.within(flags.tolerance)}),
            "steps": sums.steps,
            "forward_passes": sums.evaluations + 2 * sums.images,
            "backward_passes": sums.evaluations * len(question.classes),
            "seconds": seconds,
        },
    )


def _spell(value: float, how: str = ".3g") -> str:
    return format(value, how).replace("-", "−")
