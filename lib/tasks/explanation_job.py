"""A job: explain all images of a run, on all ranks, and write what is found as it comes.

Up to a dozen images are drawn on one sheet. Of more, each has a figure of its own, and nothing is kept of an
image but its records, so that memory does not grow with their number.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from lib.data.image_inputs import ImageInput
from lib.explain.progress import Stopped, Watch
from lib.figures import style
from lib.runtime import distributed
from lib.runtime.errors import Interrupted, RunFailed, UserError
from lib.runtime.interrupts import Signals
from lib.tasks.explanation_output import Output, Result, draw_sheet, save_thumbnail, stem_of, thumbnail_file
from lib.tasks.explanation_panels import Panel, Question
from lib.tasks.explanation_records import WrittenRecords, fingerprint
from lib.tasks.explanation_run import ExplanationRun
from lib.tasks.explanation_sheet import row_of, thumbnail
from lib.tasks.explanation_values import arrays_of
from lib.tasks.run_images import RunImages

MOST_ON_A_SHEET = 12  # images
_BATCHES_A_ROUND = 4


class TooFew(RunFailed):
    """A signal came before anything was known of an image."""


@dataclass(frozen=True)
class Explained:
    """What was found of one image.

    Attributes:
        rows: for each question, and for each layer, a row of panels.
        figures: figures of its own and the stems of their files; empty if the rows are drawn as a sheet.
        note: how far its explanation came, should a signal have stopped it.
    """

    rows: Sequence[Sequence[Panel]]
    figures: Sequence[tuple[str, Callable[[], Figure]]] = ()
    note: str = ""


# Function from the questions about each of some images (one for each network) to what was found of each. It
# may raise `Stopped` if its watch says to stop.
Explain = Callable[[Sequence[Sequence[Question]], Watch], Sequence[Explained]]


@dataclass(frozen=True)
class Job:
    """The work of a run.

    Attributes:
        run: the run.
        explain: the function that explains.
        settings: the settings of the method, for fingerprints.
        unit: unit of the progress bar over a few images.
        batch: number of images that are explained at once.
        share_images: whether ranks share the images; if not, all ranks explain all images together.
        own_figures: whether every image has figures of its own, also among a few.
    """

    run: ExplanationRun
    explain: Explain
    settings: object
    unit: str
    batch: int = 1
    share_images: bool = True
    own_figures: bool = False

    @property
    def many(self) -> bool:
        """Whether there are more images than a sheet has room for, or results are written image by image."""
        return len(self.run.sources) > MOST_ON_A_SHEET or self.run.files.resumable

    def do(self) -> None:
        """Explain all images, and write what is found.

        Raises:
            UserError: an image cannot be read or explained.
            Interrupted: a signal came; what was known by then is written.
        """
        files = self.run.files
        lines = Path(files.json) if files.json and files.json.endswith(".jsonl") else None
        written = WrittenRecords(lines, files.values_folder)
        output = Output(self.run, written, self.run.names, self.many)
        worker = _Worker(self, written, RunImages(self.run))
        started = time.perf_counter()
        with Signals() as signals, _watching(self, signals) as (watch, bar):
            try:
                if not self.many:
                    worker.images.read_all()
                if distributed.is_main():
                    written.trim()
                last = self._rounds(worker, output, signals, watch, bar)
            except (UserError, RunFailed) as error:
                if distributed.is_main():
                    output.write()
                if isinstance(error, TooFew):
                    raise Interrupted(str(error), signals.received or signal.SIGINT) from None
                raise
        if distributed.is_main():
            worker.images.warn()
            output.write()
            output.draw()
        self._draw_contact_sheet(output)
        if distributed.is_main() and self.many:
            self._say_done(output, time.perf_counter() - started)
        received = distributed.max_over_ranks(signals.received, self.run.networks[0].device)
        if received:
            raise Interrupted(self._how_far(output, last), received)

    def _rounds(
        self, worker: "_Worker", output: Output, signals: Signals, watch: Watch, bar: tqdm
    ) -> Result | None:
        """Explain batch after batch, one on each rank at a time; return the last result."""
        device = self.run.networks[0].device
        world = distributed.world_size() if self.share_images else 1
        rank = distributed.rank() if self.share_images else 0
        parts = self._parts(world)
        last = None
        for first in range(0, len(parts), world):
            mine = parts[first + rank] if first + rank < len(parts) else []
            if mine:
                bar.set_description(self.run.names[mine[0].start])
            results, error = worker.attempt(mine, signals, watch)
            everyone = distributed.gathered((results, error)) if world > 1 else [(results, error)]
            if distributed.is_main():
                for some, _ in everyone:
                    for last in some:
                        output.add(last)
                        if self.many:
                            bar.update()
            if distributed.max_over_ranks(int(error is not None), device):
                raise next((each for _, each in everyone if each), error or RunFailed("another rank failed"))
            if distributed.max_over_ranks(signals.received, device):
                break
        return last

    def _draw_contact_sheet(self, output: Output) -> None:
        """Draw the pages of rank 0, which has heard of all images, each on one of the ranks."""
        pages = distributed.told_by_main(output.contact_pages())
        for page in pages[distributed.rank() :: distributed.world_size()]:
            page.draw()
        distributed.max_over_ranks(0, self.run.networks[0].device)  # until all are drawn
        if distributed.is_main():
            for page in pages:
                self.run.log.event("FIGURE", file=page.file)

    def _parts(self, world: int) -> list[list[range]]:
        """Return the batches, as numbers of images, that a rank explains before it hears of the others."""
        count = len(self.run.names)
        batches = [range(i, min(i + self.batch, count)) for i in range(0, count, self.batch)]
        # The slowest rank of a round is waited for: over several batches, ranks differ less.
        each = _BATCHES_A_ROUND if world > 1 and len(batches) >= 4 * world * _BATCHES_A_ROUND else 1
        return [batches[i : i + each] for i in range(0, len(batches), each)]

    def _say_done(self, output: Output, seconds: float) -> None:
        rate = output.done / seconds if output.done else 0.0
        self.run.log.event(
            "DONE",
            images=output.done,
            reused=output.reused,
            skipped=output.skipped,
            images_per_second=round(rate, 3),
        )

    def _how_far(self, output: Output, last: Result | None) -> str:
        of = f"{output.done + output.reused} of {len(self.run.names)} images"
        if self.run.files.resumable:
            return f"interrupted: {of} are written; the same command goes on where it was"
        if last is not None and last.note:
            return f"interrupted {last.note}: what is known is in {last.figures[0]}"
        return f"interrupted: {of} are drawn with what is known of them"


class _Worker:
    """What a rank does: explain images, draw their own figures, and write their own values."""

    def __init__(self, job: Job, written: WrittenRecords, images: RunImages) -> None:
        self.job, self.written, self.images = job, written, images

    def attempt(
        self, batches: Sequence[Sequence[int]], signals: Signals, watch: Watch
    ) -> tuple[list[Result], Exception | None]:
        """Return the results of some batches, and the error that ended the work on them, if any."""
        results: dict[int, Result] = {}
        shares = self.job.share_images and distributed.world_size() > 1
        with distributed.alone() if shares else nullcontext():
            try:
                for numbers in batches:
                    if results and signals.received:
                        break
                    self._explain(numbers, results, signals, watch)
            except Stopped:
                pass
            except (UserError, RunFailed) as error:
                return _in_order(results), error
        return _in_order(results), None

    def _explain(
        self, numbers: Sequence[int], results: dict[int, Result], signals: Signals, watch: Watch
    ) -> None:
        job, run = self.job, self.job.run
        fresh: dict[int, tuple[list[ImageInput], str]] = {}
        for number in numbers:
            name = job.run.names[number]
            try:
                images = self.images[number]
            except UserError as error:
                if not run.asked.skip_bad:
                    advice = "" if len(job.run.names) == 1 else "; --skip-bad goes on without such images"
                    raise UserError(f"{error}{advice if job.many else ''}") from None
                results[number] = Result(name, skipped=str(error))
                continue
            key = fingerprint(run, images, job.settings) if run.files.resumable else ""
            known = self.written.find(key, name) if key else None
            if known is not None:
                results[number] = Result(name, key, known, reused=True)
            else:
                fresh[number] = images, key
        if not fresh:
            return
        questions = run.questions([images for images, _ in fresh.values()])
        for number, asked, found in zip(fresh, questions, job.explain(questions, watch), strict=True):
            partial = bool(signals.received)
            results[number] = self._result(asked, found, fresh[number][1], partial=partial)

    def _result(self, asked: Sequence[Question], found: Explained, key: str, *, partial: bool) -> Result:
        job, run, name = self.job, self.job.run, asked[0].image.name
        panels = [panel for row in found.rows for panel in row]
        records = [panel.record() for panel in panels]
        result = Result(name, key, records, partial=partial, note=found.note)
        if not distributed.is_main():
            return result
        networks = {id(network): number for number, network in enumerate(run.networks)}
        rows = [row_of(row, networks[id(row[0].question.network)], run.sheets) for row in found.rows]
        arrays = [arrays_of(panel) for panel in panels] if run.files.save_values else []
        if run.files.values_folder is None:
            result.arrays = arrays
        elif not partial:
            self.written.save_values(key, name, arrays, records)
        if found.figures:
            folder = Path(run.files.out_dir)
            result.figures = [
                style.save(make(), folder / f"{stem}.png", show=run.files.show)
                for stem, make in found.figures
            ]
        elif job.many:
            result.figures = draw_sheet(run, rows, stem_of(run, [name]))
        else:
            result.rows = rows
        if job.many and len(job.run.names) > 1:
            save_thumbnail(thumbnail_file(run, job.run.names, name), thumbnail(panels[0], run.sheets))
        return result


def _in_order(results: dict[int, Result]) -> list[Result]:
    return [results[number] for number in sorted(results)]


@contextmanager
def _watching(job: Job, signals: Signals) -> Iterator[tuple[Watch, tqdm]]:
    """Within the context, show a progress bar on the main process, and yield it with its `Watch`.

    Of many images, the bar counts images, and tells how many are explained a second; of a few, it counts what
    the explanation of each consists of.
    """
    disable = None if distributed.is_main() else True
    total, unit = (len(job.run.names), "images") if job.many else (0, job.unit)
    with tqdm(total=total, unit=f" {unit}", disable=disable, leave=False) as bar:

        def expect(count: int) -> None:
            bar.total += count
            bar.refresh()

        def report(half_width: float) -> None:
            bar.set_postfix(half_width=f"{half_width:.3g}")

        def is_stopped() -> bool:
            return bool(signals.received)

        if job.many:
            yield Watch(is_stopped=is_stopped), bar
        else:
            yield Watch(expect, bar.update, is_stopped, None if bar.disable else report), bar
