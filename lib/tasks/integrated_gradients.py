"""Steps of run-integrated-gradients.py: attributions of pixels, and how exactly they add up to the score."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.explain.methods import METHODS, Request
from lib.explain.progress import Stopped, Watch
from lib.runtime.errors import warn
from lib.runtime.settings import Settings
from lib.runtime.spelling import readable
from lib.tasks.explanation_job import Explained, Job
from lib.tasks.explanation_names import Naming
from lib.tasks.explanation_panels import Panel, Question, panels_of
from lib.tasks.explanation_run import ExplanationRun, baseline_of

METHOD = METHODS["integrated-gradients"]


@dataclass(frozen=True)
class PathSettings(Settings):
    """How the gradients are integrated; see the method's options."""

    quadrature: str
    steps: int | None
    tolerance: float
    batch_size: int | None
    smoothgrad: int | None
    noise: float
    seed: int

    def words(self, typed: Mapping[str, Any]) -> Naming:
        """Return what names of files say of these settings."""
        baseline = [Path(typed["baseline"]).stem] if "baseline" in typed else []
        smoothing = [f"smoothgrad-{self.smoothgrad}"] if self.smoothgrad else []
        return Naming("", (*baseline, *smoothing))


def explain(run: ExplanationRun, settings: PathSettings) -> None:
    """Explain every question of the run: a row of panels for each image and network.

    Raises:
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """

    def explain_one(images: Sequence[Sequence[Question]], watch: Watch) -> list[Explained]:
        (questions,) = images
        rows: list[list[Panel]] = []
        try:
            for question in questions:
                rows.append(_row(run, settings, question, watch))
        except Stopped:  # what is known of an image is drawn
            if not rows:
                raise
        return [Explained(rows)]

    Job(run, explain_one, settings, "gradients").do()


def _row(run: ExplanationRun, settings: PathSettings, question: Question, watch: Watch) -> list[Panel]:
    """Return a panel of attributions for each class.

    Raises:
        Stopped: the run was interrupted before there were any.
    """
    start = baseline_of(run.asked, question, cropped=True)
    options = {name.replace("_", "-"): value for name, value in dataclasses.asdict(settings).items()}
    found = METHOD.explain(
        Request(
            question.network,
            question.pixels,
            question.targets,
            baseline=start[None],
            settings=options,
            watch=watch,
        )
    )
    (row,) = panels_of(question, METHOD, found, lambda panel: _note(run.asked.score, panel))
    _warn(question, row, settings)
    named = {"baseline": run.asked.baseline}
    return [dataclasses.replace(panel, numbers={**named, **panel.numbers}) for panel in row]


def _warn(question: Question, row: Sequence[Panel], settings: PathSettings) -> None:
    """Warn if the largest number of steps was not enough for every map."""
    short = [panel for panel in row if not panel.numbers.get("converged", True)]
    if short:
        worst = max(short, key=lambda panel: panel.numbers["gap_share"])
        warn(
            f"{question.image.name}: {worst.numbers['steps']} steps do not bring {len(short)} of {len(row)} "
            f"maps within --tolerance {settings.tolerance:g}; that of {worst.class_name} misses "
            f"{100 * worst.numbers['gap_share']:.2g} % of the difference"
        )


def _note(score: str, panel: Panel) -> str:
    found = panel.numbers
    return (
        f"{score} {readable(panel.answer.score)}, baseline's {readable(found['baseline_score'])}\n"
        f"gap {readable(100 * math.copysign(found['gap_share'], found['completeness_gap']), '.2g')} %, "
        f"{found['steps']} steps"
    )
