"""Steps of run-shapley-value.py: choose the parts of the image, estimate their values, draw them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from lib.figures import frames
from lib.figures import shapley as pictures
from lib.runtime import distributed
from lib.runtime.errors import RunFailed, UserError, warn
from lib.runtime.files import existing_file, writable_file
from lib.runtime.settings import Settings
from lib.runtime.spelling import readable
from lib.tasks.evaluation_store import EvaluationStore
from lib.tasks.explanation_job import Explained, Job, TooFew
from lib.tasks.explanation_names import Naming
from lib.tasks.explanation_panels import Panel, Question, panels_of, title_of
from lib.tasks.explanation_run import ExplanationRun, baseline_of
from lib.tasks.explanation_sheet import heading, picture_of

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

    def words(self, typed: Mapping[str, Any]) -> Naming:
        """Return what names of files say of these settings."""
        parts = [] if self.players == "patches" else [Path(self.players).stem]
        baseline = [Path(typed["baseline"]).stem] if "baseline" in typed else []
        return Naming("", (*parts, *baseline))


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
    """Explain all images of the run: draw a figure for each, and log the numbers of each class.

    Ranks share the images. Of one image, and where a file keeps evaluations, they share the coalitions.

    Raises:
        UserError: the flags contradict each other or do not suit the image.
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """

    def explain_one(images: Sequence[Sequence[Question]], watch: Watch) -> list[Explained]:
        (questions,) = images
        rows: list[list[Panel]] = []
        figures: list[tuple[str, Callable[[], Figure]]] = []
        note = ""
        for number, question in enumerate(questions):
            if rows and watch.is_stopped():
                break
            explained = _explain_one(run, settings, question, watch)
            (panels,) = panels_of(question, METHOD, explained)
            rows.append(panels)
            found: Found = explained.details[0]
            note = f"after {found.estimate.evaluations} of {found.budget} evaluations"
            cut = watch.is_stopped() and not panels[0].numbers["converged"]
            figures += _figures(run, settings, panels, found, _stem(run, question, number), cut=cut)
        return [Explained(rows, figures, note)]

    alone = len(run.asked.input or ()) == 1 or settings.resume_values
    settings_that_count = replace(settings, resume_values=None)
    Job(run, explain_one, settings_that_count, "evaluations", share_images=not alone, own_figures=True).do()


def _explain_one(
    run: ExplanationRun, settings: ShapleySettings, question: Question, watch: Watch
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
        targets = [target.name for target in question.others]
        key = game.fingerprint(targets or list(question.classes), question.score)
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
        stopped = distributed.max_over_ranks(int(watch.is_stopped()), question.network.device)
        if stopped:
            raise TooFew(f"interrupted: {error}") from None
        raise


def _players(settings: ShapleySettings, question: Question) -> Players:
    size = question.size
    if settings.players == "patches":
        return image_shapley.patches(size, settings.patch_side_len)
    if settings.players == "slic":
        return players.superpixels(question.image.pixels, settings.segments)
    return players.from_labels(photographs.read_labels(settings.players), size, settings.players)


def _stem(run: ExplanationRun, question: Question, number: int) -> str:
    """Return the first part of the names of the files about a question, to the network of that number."""
    network = question.network
    several_epochs = len({each.name for each in run.networks}) < len(run.networks)
    epoch = f"-epoch-{network.epoch}" if several_epochs and network.epoch is not None else ""
    names = [f"{each.name} {each.epoch}" for each in run.networks[: number + 1]]
    again = f"-{names.count(names[-1])}" if names.count(names[-1]) > 1 else ""
    return run.naming.stem([f"{network.name}{epoch}{again}"], [question.image.name])


def _figures(
    run: ExplanationRun,
    settings: ShapleySettings,
    panels: Sequence[Panel],
    found: Found,
    stem: str,
    *,
    cut: bool,
) -> list[tuple[str, Callable[[], Figure]]]:
    """Return the figures of one question, with the stems of their files' names; `cut`: interrupted."""
    question, parts, estimate = panels[0].question, found.players, found.estimate
    how = f"{found.estimator}, {found.estimate.evaluations} evaluations"
    said = f"interrupted: {how} of {found.budget}" if cut else how
    picture, box = picture_of(question.image, run.sheets.on)
    scene = pictures.Scene(
        picture,
        parts.map.numpy(),
        [*heading(question), said],
        question.score,
        box,
        run.sheets.columns or frames.COLUMNS,
    )
    names = [_title(panel.record()) for panel in panels]
    values, errors = estimate.values.numpy(), estimate.standard_errors
    figures = [(stem, lambda: pictures.attributions(scene, names, values))]
    if settings.show_uncertainty:
        uncertain = (estimate.values.abs() <= shapley.HALF_WIDTH * errors).numpy()
        figures.append(
            (f"{stem}-uncertainty", lambda: pictures.attributions(scene, names, values, uncertain))
        )
    if settings.interactions:

        def draw_interactions() -> Figure:
            pairwise = (
                interactions.exact(estimate.coalitions, estimate.outcomes)
                if estimate.evaluations == 2**parts.count
                else interactions.estimate(estimate.coalitions, estimate.outcomes, parts.positions)
            )
            return pictures.interactions(scene, names, values, pairwise.numpy())

        figures.append((f"{stem}-interactions", draw_interactions))
    return figures


def _title(record: dict[str, Any]) -> str:
    """Return the title of a class's panel."""
    ends = f"v(N) {readable(record['value_full'])}, v(∅) {readable(record['value_empty'])}"
    error = f", ±{record['half_width']:.2g} (95 %)" if record["half_width"] else ""
    return f"{title_of(record)}\n{ends}{error}"
