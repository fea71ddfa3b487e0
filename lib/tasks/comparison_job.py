"""A whole comparison, from settings to the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.runtime import distributed
from lib.tasks import comparison_report
from lib.tasks.comparison import Comparison, ComparisonSettings, warn_of_refused
from lib.tasks.comparison_measures import MeasureSettings
from lib.tasks.comparison_store import Store
from lib.tasks.explanation_run import ExplanationRun


def compare(run: ExplanationRun, flags: Mapping[str, Any]) -> None:
    """Compare explanations of all images of the run, and write the report.

    Raises:
        UserError: the flags contradict each other or do not suit an image.
        Interrupted: a signal came; what was computed is kept.
    """
    settings = ComparisonSettings.of(flags)
    path = comparison_report.report_file(settings.report, run.files.out_dir, settings.format)
    masked = comparison_report.were_masked(flags["restore_file"] or (), len(run.networks))
    store = Store(Path(run.files.out_dir) / "kept")
    whole = Comparison(run, settings, MeasureSettings.of(flags), store, masked)
    if distributed.is_main():
        warn_of_refused(whole.refused, run.networks)
    found = whole.do()
    if found is not None:
        comparison_report.write(whole, found, path)
