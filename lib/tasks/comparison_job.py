"""A whole comparison, from settings to the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.evaluation.measures import MEASURES
from lib.explain.shapley import FEWEST_EVALUATIONS_A_PLAYER
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.tasks import comparison_report
from lib.tasks.comparison import Comparison, ComparisonSettings, check_refused
from lib.tasks.comparison_measures import MeasureSettings
from lib.tasks.comparison_store import Store
from lib.tasks.explanation_run import ExplanationRun


def compare(run: ExplanationRun, flags: Mapping[str, Any]) -> None:
    """Compare explanations of all images of the run, and write the report.

    Raises:
        UserError: the flags contradict each other or do not suit an image.
        Interrupted: a signal came; what was computed is kept.
    """
    settings, asked = ComparisonSettings.of(flags), MeasureSettings.of(flags)
    _check_budget(asked)
    boxed = [name for name in asked.measures or () if name != "all" and MEASURES[name].of_boxes]
    if boxed and not settings.boxes:
        raise UserError(
            f"--measures {boxed[0]} measures where a map lies: say where the objects are with --boxes"
        )
    path = comparison_report.report_file(settings.report, run.files.out_dir, settings.format)
    masked = comparison_report.were_masked(flags["restore_file"] or (), len(run.networks))
    store = Store(Path(run.files.out_dir) / "kept")
    whole = Comparison(run, settings, asked, store, masked)
    if distributed.is_main():
        check_refused(whole)
    found = whole.do(comparison_report.RecordLines(run).add)
    comparison_report.write(whole, found, path)


def _check_budget(asked: MeasureSettings) -> None:
    patches = asked.grid**2
    least = min(FEWEST_EVALUATIONS_A_PLAYER * patches, 2**patches)
    least += least % 2  # evaluations come in complementary pairs
    if asked.budget < least and asked.wants("agreement", "top-share"):
        raise UserError(
            f"--budget {asked.budget} is too small for the {patches} patches of --grid {asked.grid}: give "
            f"{least} or more, or a smaller --grid"
        )
