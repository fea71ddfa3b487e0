"""What a job writes: log lines, records, values, sheets, and a contact sheet of many images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.figures import explanations as pictures
from lib.figures import style
from lib.runtime.errors import warn
from lib.runtime.files import replaced, write_atomically
from lib.tasks.explanation_panels import title_of
from lib.tasks.explanation_records import Records, WrittenRecords
from lib.tasks.explanation_run import ExplanationRun
from lib.tasks.explanation_sheet import Row, pages
from lib.tasks.explanation_values import RowsOfArrays, as_json

_ON_A_CONTACT_SHEET = 50  # thumbnails


@dataclass
class Result:
    """What a rank found of one image: plain values, which can be sent to another rank.

    Attributes:
        name: name of the image.
        key: fingerprint of the image and of all that its explanation depends on; empty if nobody asks.
        records: the records of its panels.
        rows: its rows of the common sheet, if there is one.
        arrays: the arrays of its panels, if there is one file for all.
        figures: the files of its own figures.
        skipped: why it cannot be explained; empty if it can.
        reused: whether it was found in the files of an earlier run.
        partial: whether a signal came while it was explained, such that not all may be known.
        note: how far its explanation came before a signal stopped it.
    """

    name: str
    key: str = ""
    records: Records = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    arrays: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    skipped: str = ""
    reused: bool = False
    partial: bool = False
    note: str = ""


class Output:
    """The output of a run, on rank 0.

    Args:
        run: the run.
        written: what earlier runs have written.
        names: names of all images.
        many: whether there is a contact sheet instead of a common sheet.

    Attributes:
        done: number of images explained.
        skipped: number of images that could not be.
        reused: number of images whose results were there.
    """

    def __init__(self, run: ExplanationRun, written: WrittenRecords, names: Sequence[str], many: bool):
        self._run, self._written, self._names, self._many = run, written, names, many
        self._records: Records = []
        self._titles: dict[str, list[str]] = {}
        self._rows: list[Row] = []
        self._arrays = RowsOfArrays()
        self.done = self.skipped = self.reused = 0

    def add(self, result: Result) -> None:
        """Write what was found of one image as far as it is written image by image, and keep the rest."""
        run = self._run
        if result.skipped:
            warn(f"{result.skipped}: skipped")
            self.skipped += 1
            return
        self._titles[result.name] = [result.name, _first_answer(result.records)]
        self.reused += result.reused
        # Where results are written image by image, one that a signal cut short is not, and is explained anew.
        self.done += not result.reused and not (result.partial and run.files.resumable)
        if not result.reused:
            for record in result.records:
                run.log.event("PANEL", **record)
        for path in result.figures:
            run.log.event("FIGURE", file=path)
        if not result.partial:
            self._written.add(result.key, result.records)
        if run.files.json and not run.files.json.endswith(".jsonl"):
            self._records += result.records
        self._rows += result.rows
        self._arrays.add(result.arrays, str(run.files.save_values))

    def write(self) -> None:
        """Write the records and the values of all images, if there is a file for all of them."""
        files, log = self._run.files, self._run.log
        if self._records and files.json:
            write_atomically(Path(files.json), as_json(self._records))
        if files.json and self._titles:
            log.event("RECORDS", file=files.json)
        if self._arrays:
            self._arrays.save(Path(str(files.save_values)))
        if files.save_values and self._titles:
            log.event("VALUES", file=files.save_values)

    def draw(self) -> None:
        """Draw the common sheet, if there is one."""
        run = self._run
        if self._rows:
            for path in draw_sheet(run, self._rows, stem_of(run, self._names)):
                run.log.event("FIGURE", file=path)

    def contact_pages(self) -> list["ContactPage"]:
        """Return the pages of the contact sheet of many images; none if there is a common sheet."""
        if self._rows or not self._many or len(self._names) < 2:
            return []
        run, shown = self._run, list(self._titles)
        stem = stem_of(run, self._names)
        parts = [shown[i : i + _ON_A_CONTACT_SHEET] for i in range(0, len(shown), _ON_A_CONTACT_SHEET)]
        return [
            ContactPage(
                Path(run.files.out_dir) / f"{stem}-contact{_page(number)}.png",
                [(self._titles[name], thumbnail_file(run, self._names, name)) for name in part],
            )
            for number, part in enumerate(parts, start=1)
        ]


class ContactPage(NamedTuple):
    """A page of a contact sheet: its file, and the title and the file of each thumbnail."""

    file: Path
    thumbnails: list[tuple[list[str], Path]]

    def draw(self) -> None:
        """Draw the page."""
        shown = [(title, _read_thumbnail(path)) for title, path in self.thumbnails]
        style.save(pictures.contact_sheet(shown), self.file)


def _first_answer(records: Records) -> str:
    return title_of(records[0]) if records else ""


def stem_of(run: ExplanationRun, images: Sequence[str]) -> str:
    """Return the first part of the names of files about some images."""
    return run.naming.stem([network.name for network in run.networks], images)


def _page(number: int) -> str:
    return "" if number == 1 else f"-page-{number}"


def draw_sheet(run: ExplanationRun, rows: Sequence[Row], stem: str) -> list[Path]:
    """Draw the pages of a sheet, and with `--animate` a GIF of a frame for each network; return the files."""
    folder, found = Path(run.files.out_dir), []
    if run.files.animate:
        frames = []
        for network in range(len(run.networks)):
            lines = [line for row in rows if row.network == network for line in row.lines]
            if lines:
                frames.append(pictures.sheet(lines))
        found.append(pictures.save_animation(frames, folder / f"{stem}.gif"))
    for number, lines in enumerate(pages(rows), start=1):
        path = folder / f"{stem}{_page(number)}.png"
        found.append(style.save(pictures.sheet(lines), path, show=run.files.show))
    return found


def thumbnail_file(run: ExplanationRun, names: Sequence[str], name: str) -> Path:
    """Return the file of an image's thumbnail, from which the contact sheet is made in the end.

    The files are kept, so that a run that goes on where another was killed has those of both.
    """
    return Path(run.files.out_dir) / f"{stem_of(run, names)}-thumbnails" / f"{name}.png"


def save_thumbnail(path: Path, pixels: np.ndarray) -> None:
    """Write a thumbnail (H, W, 3) uint8."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        Image.fromarray(pixels).save(file, "PNG")


def _read_thumbnail(path: Path) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError):  # removed by the user, or half a file
        return None
