"""Steps of run-shapley-value.py: choose the parts of the image, estimate their values, draw them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lib.data import photographs
from lib.explain import image_shapley, interactions, players, shapley
from lib.explain.explanation import Explanation
from lib.explain.games import MaskedImage
from lib.explain.image_shapley import Found
from lib.explain.methods import METHODS, Request
from lib.explain.players import Players
from lib.explain.progress import Watch
from lib.figures import shapley as pictures
from lib.figures import style
from lib.runtime import distributed
from lib.runtime.errors import Interrupted, RunFailed, UserError, warn
from lib.runtime.files import existing_file, writable_file
from lib.runtime.interrupts import Signals
from lib.runtime.runlog import RunLog
from lib.runtime.settings import Settings
from lib.tasks.evaluation_store import EvaluationStore
from lib.tasks.explanation_panels import Panel, Question, as_bytes, heading, panels_of
from lib.tasks.explanation_run import ExplanationRun, baseline_of

METHOD = METHODS["shapley"]


@dataclass(frozen=True)
class ShapleySettings(Settings):
    """The players, the estimate, and the figures to draw."""

    players: str
    patch_side_len: int | None
    segments: int
    estimator: str
    budget: int | None
    tolerance: float | None
    max_context: int | None
    resume_values: str | None
    amp: bool
    seed: int
    show_uncertainty: bool
    interactions: bool


def check(settings: ShapleySettings, typed: Mapping[str, Any]) -> None:
    """Raise a UserError if the flags contradict each other, before anything is loaded."""
    if settings.players != "patches" and "patch_side_len" in typed:
        raise UserError("--patch-side-len goes with --players patches alone")
    if settings.players != "slic" and "segments" in typed:
        raise UserError("--segments goes with --players slic alone")
    if settings.players not in ("patches", "slic"):
        existing_file(settings.players)
    if settings.max_context and settings.estimator != "per-patch":
        raise UserError("--max-context goes with --estimator per-patch alone")
    if settings.max_context and settings.budget:
        raise UserError("--max-context and --budget both say how many evaluations: choose one")
    if settings.interactions and settings.estimator == "per-patch":
        raise UserError("--interactions needs complementary pairs, which --estimator per-patch does not ask")
    if settings.resume_values:
        if not settings.resume_values.endswith(".npz"):
            raise UserError(f"--resume-values {settings.resume_values}: the name must end in .npz")
        writable_file(settings.resume_values)


def explain(run: ExplanationRun, settings: ShapleySettings) -> None:
    """Explain every question of the run: draw a figure for each image, and log the numbers of each class.

    Raises:
        UserError: the flags contradict each other or do not suit the image.
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """
    device = run.networks[0].device
    with distributed.process_group(device), Signals() as signals:
        run = replace(run, log=RunLog(run.name, enabled=distributed.is_main()))
        done: list[Panel] = []
        questions = run.questions()
        try:
            with run.watching(signals, "evaluations") as (watch, bar):
                for question, stem in zip(questions, _stems(run, questions), strict=True):
                    bar.set_description(f"{question.image.name}, {question.network.name}")
                    found = _explain_one(run, settings, question, watch, signals)
                    (panels,) = panels_of(question, METHOD, found)
                    done += panels
                    interrupted = bool(signals.received) and not panels[0].numbers["converged"]
                    _report(run, settings, panels, found.details[0], stem, interrupted=interrupted)
                    received = distributed.max_over_ranks(signals.received, device)
                    if received:
                        break
        finally:  # also if the last image failed, so that the results of the others are not lost
            if distributed.is_main() and done:
                run.write(done)
    if received:
        raise Interrupted(
            f"interrupted after {found.details[0].estimate.evaluations} of {found.details[0].budget} "
            f"evaluations: what is known is in {_path(run, stem)}",
            received,
        )


def _explain_one(
    run: ExplanationRun, settings: ShapleySettings, question: Question, watch: Watch, signals: Signals
) -> Explanation:
    parts = _players(settings, question)
    if parts.note and distributed.is_main():
        warn(parts.note)
    if settings.interactions and parts.count < 2:
        raise UserError("--interactions needs two players or more: a smaller --patch-side-len")

    @contextlib.contextmanager
    def store(game: MaskedImage) -> Iterator[EvaluationStore | None]:
        """Yield the store that `--resume-values` names, if any, and save it however the block ends."""
        if not settings.resume_values:
            yield None
            return
        key = game.fingerprint(list(question.classes), question.score)
        shape = (parts.count, len(question.classes))
        record = EvaluationStore(Path(settings.resume_values), key, shape)
        try:
            yield record
        finally:
            record.save()

    options = {option.name: getattr(settings, option.name.replace("-", "_")) for option in METHOD.options}
    request = Request(
        question.network,
        question.pixels,
        question.targets,
        baseline=baseline_of(run.asked, question, cropped=False)[None],
        settings={**options, "players": parts, "seed": settings.seed, "store": store},
        watch=watch,
    )
    try:
        return METHOD.explain(request)
    except RunFailed as error:
        received = distributed.max_over_ranks(signals.received, question.network.device)
        if received:
            raise Interrupted(f"interrupted: {error}", received) from None
        raise


def _players(settings: ShapleySettings, question: Question) -> Players:
    size = question.network.size
    if settings.players == "patches":
        return image_shapley.patches(size, settings.patch_side_len)
    if settings.players == "slic":
        return players.superpixels(question.image.pixels, settings.segments)
    return players.from_labels(photographs.read_labels(settings.players), size, settings.players)


def _report(
    run: ExplanationRun,
    settings: ShapleySettings,
    panels: Sequence[Panel],
    found: Found,
    stem: str,
    *,
    interrupted: bool,
) -> None:
    """Log the numbers of one question and draw its figures; their file names begin with `stem`."""
    if not distributed.is_main():
        return
    for panel in panels:
        run.log.event("PANEL", **panel.record())
    how = f"{found.estimator}, {found.estimate.evaluations} evaluations"
    if interrupted:
        how = f"interrupted: {how} of {found.budget}"
    for suffix, figure in _figures(settings, panels, found, how):
        path = style.save(figure, _path(run, stem, suffix), show=run.files.show)
        run.log.event("FIGURE", file=path)


def _path(run: ExplanationRun, stem: str, suffix: str = "") -> Path:
    return Path(run.files.out_dir) / f"{stem}{suffix}.png"


def _stems(run: ExplanationRun, questions: Sequence[Question]) -> list[str]:
    """Return a distinct first part of the file names for each question's figures."""
    several_epochs = len({network.name for network in run.networks}) < len(run.networks)
    stems: list[str] = []
    for network, image in ((question.network, question.image) for question in questions):
        epoch = f"-epoch-{network.epoch + 1}" if several_epochs and network.epoch is not None else ""
        stem = f"{run.name}-{network.name}{epoch}-{image.name}"
        names = (stem, *(f"{stem}-{number}" for number in range(2, len(questions) + 1)))
        stems.append(next(name for name in names if name not in stems))
    return stems


def _figures(
    settings: ShapleySettings, panels: Sequence[Panel], found: Found, how: str
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one image, and how the names of their files end."""
    question, parts, estimate = panels[0].question, found.players, found.estimate
    scene = pictures.Scene(
        as_bytes(question.image.pixels), parts.map.numpy(), [*heading(question), how], question.score
    )
    names = [_title(panel.record()) for panel in panels]
    values, errors = estimate.values, estimate.standard_errors
    yield "", pictures.attributions(scene, names, values.numpy())
    if settings.show_uncertainty:
        uncertain = values.abs() <= shapley.HALF_WIDTH * errors
        yield "-uncertainty", pictures.attributions(scene, names, values.numpy(), uncertain.numpy())
    if settings.interactions:
        pairwise = (
            interactions.exact(estimate.coalitions, estimate.outcomes)
            if estimate.evaluations == 2**parts.count
            else interactions.estimate(estimate.coalitions, estimate.outcomes, parts.positions)
        )
        yield "-interactions", pictures.interactions(scene, names, values.numpy(), pairwise.numpy())


def _title(record: dict[str, Any]) -> str:
    """Return the title of a class's panel."""
    ends = f"v(N) {record['value_full']:.3g}, v(∅) {record['value_empty']:.3g}".replace("-", "−")
    error = f", ±{record['half_width']:.2g} (95 %)" if record["half_width"] else ""
    return f"{record['class']}: {record['probability']:.3f}\n{ends}{error}"
