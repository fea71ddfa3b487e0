"""What a comparison writes: the report, the sheet, records and arrays; nothing is drawn twice."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.cli.comparison_flags import INPAINT
from lib.evaluation.measures import MEASURES
from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.runtime.files import replaced, writable_file, write_atomically
from lib.tasks import comparison_table
from lib.tasks.comparison import Comparison, Found
from lib.tasks.comparison_store import key_of
from lib.tasks.explanation_values import as_json, as_lines


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


def write(whole: Comparison, found: Found, path: Path) -> None:
    """Write the report and what else is asked for; log the files. Call it on rank 0.

    Raises:
        RunFailed: a file cannot be written.
    """
    run, settings = whole.run, whole.settings
    tables = comparison_table.tables_of(found, whole.masked)
    said = _settings(whole)
    if run.files.json:
        records = _records(found)
        lines = run.files.json.endswith(".jsonl")
        write_atomically(Path(run.files.json), as_lines(records) if lines else as_json(records))
        run.log.event("RECORDS", file=run.files.json)
    if run.files.save_values:
        _save_values(whole, found, Path(run.files.save_values))
        run.log.event("VALUES", file=run.files.save_values)
    text = comparison_table.markdown(tables, said)
    table_file = path if settings.format == "md" else path.with_suffix(".md")
    write_atomically(table_file, text.encode())
    run.log.event("TABLE", file=table_file)
    if settings.format == "html":
        for file in _drawn(whole, found, path, tables, text):
            run.log.event("FIGURE", file=file)
    run.log.event("DONE", images=len(found.names), maps=len(found.rows), reused=whole.store.reused)


def _drawn(
    whole: Comparison, found: Found, path: Path, tables: Sequence[comparison_table.Table], text: str
) -> list[Path]:
    """Write the page and the sheet, unless those that are there are of the same results; return the files."""
    run, folder = whole.run, Path(whole.run.files.out_dir)
    parts = (whole.settings.shown, run.sheets.columns, run.sheets.on, path)
    key = key_of(text, [row.key for row in found.rows], *parts)
    note = folder / "kept" / "drawn.json"
    known = _intact(note, key)
    if known and not run.files.show:
        return known
    # Only here, because they load matplotlib, which takes a second.
    from lib.figures import frames
    from lib.tasks import comparison_page, comparison_panels

    columns = run.sheets.columns or frames.COLUMNS
    panels = comparison_panels.shown(whole, found)
    write_atomically(path, comparison_page.page(tables, panels, _settings(whole)).encode())
    files = [path, *comparison_panels.sheets(panels, columns, folder, show=run.files.show)]
    content = {"key": key, "files": {str(file): _sha(file) for file in files}}
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(content).encode())
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


def _settings(whole: Comparison) -> list[str]:
    """Return what was compared, as sentences."""
    asked, run = whole.asked, whole.run
    what = run.asked
    targets = (
        f"the classes {', '.join(what.target)}" if what.target else f"the {what.top_k} likeliest classes"
    )
    if what.top_k == 1 and not what.target:
        targets = "the likeliest class"
    if asked.removal == INPAINT:
        shown = "Removed parts are in-painted; methods that have a baseline get the mean colour."
    else:
        shown = f"Removed parts show: {asked.removal}, as do methods that have a baseline."
    return [
        f"Networks: {', '.join(network.name for network in run.networks)}. "
        f"{len(whole.run.names)} image{'s' * (len(whole.run.names) != 1)}"
        + (f" of {whole.settings.study}, drawn with the seed {asked.seed}." if whole.settings.study else "."),
        f"Explained: the {what.score} of {'the units or areas given' if what.others else targets}.",
        f"{shown} For single deletion they are black."
        + (" Their scores are computed in bfloat16." if asked.amp else ""),
        f"Shapley values: {asked.grid} × {asked.grid} patches, {asked.budget} evaluations at most. Deletion "
        f"and insertion: {asked.steps} steps. Noise and random weights: "
        f"{min(whole.settings.probed, len(whole.run.names))} images.",
    ]


def _records(found: Found) -> list[dict]:
    told = {(each.image, each.network): each for each in found.told}
    return [
        {
            "image": found.names[row.image],
            "model": found.run.networks[row.network].name,
            "method": row.method,
            "target": told[row.image, row.network].targets[target],
            "score": told[row.image, row.network].answers[target],
            **{name: numbers[name] for name in MEASURES if name in numbers},
            "passes": row.passes,
            "seconds": row.seconds,
        }
        for row in found.rows
        for target, numbers in enumerate(row.numbers)
    ]


def _save_values(whole: Comparison, found: Found, path: Path) -> None:
    """Save the maps of the images that are shown (P, H, W), with names, models, methods and classes (P,)."""
    columns: dict[str, list] = {name: [] for name in ("maps", "names", "models", "methods", "classes")}
    told = {(each.image, each.network): each for each in found.told}
    for row in found.rows:
        saved = whole.store.find(row.key, with_maps=True) if row.image < whole.settings.shown else None
        for target, values in enumerate([] if saved is None else saved["maps"]):
            columns["maps"].append(values)
            columns["names"].append(found.names[row.image])
            columns["models"].append(found.run.networks[row.network].name)
            columns["methods"].append(row.method)
            columns["classes"].append(told[row.image, row.network].targets[target])
    if len({values.shape for values in columns["maps"]}) > 1:
        raise UserError(f"{path} cannot hold maps of different sizes: leave out --fit native")
    arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
    with replaced(path) as file:
        np.savez_compressed(file, **arrays)
