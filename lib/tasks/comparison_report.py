"""What a comparison writes: the report, the sheet, records and arrays; nothing is drawn twice."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from lib.cli.comparison_flags import INPAINT
from lib.evaluation.measures import MEASURES
from lib.runtime import checkpoint, distributed
from lib.runtime.errors import UserError
from lib.runtime.files import writable_file, write_atomically
from lib.tasks import comparison_table
from lib.tasks.comparison import Comparison, kept_maps
from lib.tasks.comparison_results import Found, Row, Told
from lib.tasks.comparison_store import key_of
from lib.tasks.explanation_run import ExplanationRun
from lib.tasks.explanation_values import RowsOfArrays, as_json, as_lines


def report_file(report: str | None, out_dir: str, kind: str) -> Path:
    """Return the file of the report; its folder is made.

    Raises:
        UserError: it cannot be written, or its name has the ending of another format.
    """
    named = report or f"{out_dir}/"
    is_folder = named.endswith(("/", os.sep)) or os.path.isdir(named) or not Path(named).suffix
    path = Path(named) / f"comparison.{kind}" if is_folder else Path(named)
    if path.suffix.lower() != f".{kind}":
        raise UserError(f"--report {named}: the name of a report in {kind} ends in .{kind}")
    return writable_file(path)


def were_masked(checkpoints: Sequence[str], networks: int) -> list[bool]:
    """Return for each network whether its checkpoint says that it was trained with erased patches."""
    if len(checkpoints) != networks:
        return [False] * networks
    return [_is_erased(file) for file in checkpoints]


def _is_erased(file: str) -> bool:
    try:
        flags = checkpoint.load(file).get("flags", {})
    except UserError:
        return False
    return "erase" in (flags.get("augment") or ())


class RecordLines:
    """The records as JSON lines, which are written as they come, if `--json FILE.jsonl` asks for it."""

    def __init__(self, run: ExplanationRun) -> None:
        named = run.files.json or ""
        self._run = run
        self._path = Path(named) if named.endswith(".jsonl") and distributed.is_main() else None
        if self._path is not None:
            write_atomically(self._path, b"")

    def add(self, rows: Sequence[Row], told: Sequence[Told]) -> None:
        """Append the records of an image."""
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(as_lines(_records(self._run, rows, told)))


def write(whole: Comparison, found: Found, path: Path) -> None:
    """Write the report and what else is asked for; log the files. Ranks share the drawing.

    Raises:
        RunFailed: a file cannot be written.
    """
    run, settings = whole.run, whole.settings
    tables = comparison_table.tables_of(found, whole.masked, whole.asked.names)
    text = comparison_table.markdown(tables, _settings(whole))
    if distributed.is_main():
        _write_numbers(whole, found, text, path if settings.format == "md" else path.with_suffix(".md"))
    if settings.format == "html":
        for file in _drawn(whole, found, path, tables, text):
            run.log.event("FIGURE", file=file)
    skipped = {"skipped": len(found.bad)} if found.bad else {}
    reused = sum(row.reused for row in found.rows)
    run.log.event("DONE", images=len(found.good), **skipped, maps=len(found.rows), reused=reused)


def _write_numbers(whole: Comparison, found: Found, text: str, table_file: Path) -> None:
    """Write the table, and the records and the maps if they are asked for."""
    run = whole.run
    if run.files.json:
        if not run.files.json.endswith(".jsonl"):
            write_atomically(Path(run.files.json), as_json(_records(run, found.rows, found.told)))
        run.log.event("RECORDS", file=run.files.json)
    if run.files.save_values:
        _save_values(whole, found)
        run.log.event("VALUES", file=run.files.save_values)
    write_atomically(table_file, text.encode())
    run.log.event("TABLE", file=table_file)


def _drawn(
    whole: Comparison, found: Found, path: Path, tables: Sequence[comparison_table.Table], text: str
) -> list[Path]:
    """Write the page and the sheet, unless those that are there are of the same results; return the files."""
    run = whole.run
    parts = (whole.settings.shown, run.sheets.columns, run.sheets.on, path)
    key = key_of(text, [row.key for row in found.rows], *parts)
    note = Path(run.files.out_dir) / "kept" / "drawn.json"
    known = distributed.told_by_main(_intact(note, key))
    if known and not run.files.show:
        return known
    # Only here, because they load matplotlib, which takes a second.
    from lib.figures import frames
    from lib.tasks import comparison_page, comparison_panels

    panels = comparison_panels.shown(whole, found)
    stem = path.with_suffix("")
    pages = comparison_panels.pages(panels, run.sheets.columns or frames.COLUMNS)
    files = [path, *(comparison_panels.page_file(stem, number) for number in range(len(pages)))]
    # The page costs less than one of the sheet: the ranks that draw most begin at the end.
    for number in range(len(files))[::-1][distributed.rank() :: distributed.world_size()]:
        if number:
            comparison_panels.draw(pages[number - 1], files[number], show=run.files.show)
        else:
            content = comparison_page.page(tables, panels, _settings(whole))
            write_atomically(path, content.encode())
    distributed.max_over_ranks(0, run.networks[0].device)  # until all are drawn
    if distributed.is_main():
        written = {"key": key, "files": {str(file): _sha(file) for file in files}}
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps(written).encode())
    return files


def _intact(note: Path, key: str) -> list[Path]:
    try:
        content = json.loads(note.read_bytes())
        files = {Path(name): digest for name, digest in content["files"].items()}
        same = content["key"] == key and all(_sha(file) == digest for file, digest in files.items())
        return list(files) if same else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged: drawn again
        return []


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_SHOWN = {
    "blur": "the image, blurred",
    "mean": "its mean colour",
    "grey": "grey",
    "black": "black",
    "noise": "noise",
}  # by what removed parts show


def _settings(whole: Comparison) -> list[str]:
    """Return what was compared, as sentences."""
    asked, run = whole.asked, whole.run
    count = len(run.names)
    drawn = f" of {whole.settings.study}, drawn with the seed {asked.seed}" if whole.settings.study else ""
    said = [
        f"Network{'s' * (len(run.networks) > 1)}: {', '.join(run.network_names)}. "
        f"{_many(count, 'image')}{drawn}.",
        f"Explained: the {run.asked.score} of {_targets(run)}.",
    ]
    if asked.removal == INPAINT:
        shown = "Removed parts are in-painted; methods that have a baseline get the mean colour."
    else:
        shown = f"Removed parts show {_SHOWN[asked.removal]}, the baseline of methods that have one, too."
    if asked.wants("single-deletion") and asked.removal != "black":
        shown += " For single deletion they are black."
    said.append(shown + (" Scores of removals are computed in bfloat16." if asked.amp else ""))
    how = []
    if asked.wants("agreement", "top-share"):
        how.append(
            f"Shapley values: {asked.grid} × {asked.grid} patches, at most {asked.budget} evaluations."
        )
    if asked.wants("deletion", "insertion"):
        how.append(f"Deletion and insertion: {asked.steps} steps.")
    if asked.wants("max-sensitivity", "randomisation", "randomisation-smooth"):
        how.append(f"Noise and random weights: {_many(min(whole.settings.probed, count), 'image')}.")
    return [*said, *([" ".join(how)] if how else [])]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _targets(run: ExplanationRun) -> str:
    """Return which targets are explained, in words."""
    asked = run.asked
    if asked.others:
        return "the units or areas given"
    if asked.target:
        which = f"the class{'es' * (len(asked.target) > 1)} {', '.join(asked.target)}"
    else:
        which = "the likeliest class" if asked.top_k == 1 else f"the {asked.top_k} likeliest classes"
    if not asked.dense:
        return which
    region = asked.region or ("the area given" if asked.area else "prediction")
    return f"{which}, summed over the region: {region}"


def _records(run: ExplanationRun, rows: Sequence[Row], told: Sequence[Told]) -> list[dict]:
    known = {(each.image, each.network): each for each in told}
    return [
        {
            "image": run.names[row.image],
            "model": run.network_names[row.network],
            "method": row.method,
            "target": known[row.image, row.network].targets[target],
            "score": known[row.image, row.network].answers[target],
            **{name: numbers[name] for name in MEASURES if name in numbers},
            "passes": row.passes,
            "seconds": row.seconds,
        }
        for row in rows
        for target, numbers in enumerate(row.numbers)
    ]


def _save_values(whole: Comparison, found: Found) -> None:
    """Save the maps of all images (P, H, W), with names, models, methods and classes (P,).

    Into one file, or in a folder, into one for each image.
    """
    files = whole.run.files
    if files.values_folder is None:
        _save_maps(whole, found, found.rows, Path(str(files.save_values)))
        return
    for number in found.good:
        rows = [row for row in found.rows if row.image == number]
        _save_maps(whole, found, rows, files.values_folder / f"{found.names[number]}.npz")


def _save_maps(whole: Comparison, found: Found, rows: Sequence[Row], path: Path) -> None:
    told = {(each.image, each.network): each for each in found.told}
    arrays = RowsOfArrays()
    for row in rows:
        columns = {
            "names": found.names[row.image],
            "models": found.run.network_names[row.network],
            "methods": row.method,
        }
        targets = told[row.image, row.network].targets
        maps = zip(kept_maps(whole, row), targets, strict=True)
        arrays.add([{"maps": values, **columns, "classes": target} for values, target in maps], str(path))
    if arrays:
        arrays.save(path)
