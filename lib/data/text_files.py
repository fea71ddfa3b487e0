"""Files of texts, one a row: TSV, CSV, JSON, JSON Lines, Parquet, or lines of plain text."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from sys import maxsize
from typing import IO, Any, NamedTuple

from lib.data.text_streams import lines_of
from lib.runtime.errors import UserError
from lib.runtime.files import existing_file

TEXT_COLUMNS = ("sentence", "text", "phrase", "review")
LABEL_COLUMNS = ("label", "sentiment")
SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
COMPRESSED = (".gz", ".bz2", ".xz")
_DELIMITERS = ",;\t|"


@dataclass
class Columns:
    """The names of the columns to read; None for the first of the usual names that a file has.

    Attributes:
        text, label: the names.
        are_required: whether a file without a column of these names is refused, or read by the usual names.
        found: the names of the columns that were taken, filled in when a file is read; None until then, and
            where the format does not name them.
    """

    text: str | None = None
    label: str | None = None
    are_required: bool = True
    found: tuple[str, str | None] | None = None


class Row(NamedTuple):
    """One line of a file: its place (for error messages), its text, and its label as written, or None."""

    place: str
    text: str
    label: str | None


def suffix_of(name: str | Path) -> str:
    """Return the suffix that tells the format, e.g. `.csv` of `a.CSV.gz`."""
    suffixes = [each.lower() for each in Path(name).suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_file(path: str | Path, columns: Columns | None = None) -> Iterator[Row]:
    """Yield the rows of a .tsv, .csv, .json, .jsonl or .parquet file, or of lines of plain text, one by one.

    All formats but plain text name their columns. Files may be compressed. TSV files have no quoting, like
    GLUE's, unless their header is quoted; the delimiter of CSV files is found by their header. Bytes that are
    not UTF-8 become U+FFFD.

    Args:
        path: the file.
        columns: names of the columns; by default the first of `TEXT_COLUMNS` and of `LABEL_COLUMNS`.

    Raises:
        UserError: the file or the column does not exist, or a line (named by its number) cannot be read.
    """
    path = existing_file(path)
    columns = columns or Columns()
    try:
        with path.open("rb") as file:
            if file.peek(4)[:4] == b"PAR1":
                yield from _parquet_rows(path, columns)
            elif suffix_of(path) == ".parquet":
                raise UserError(f"{path} cannot be read as Parquet: it does not begin as such files do")
            else:
                yield from read_lines(file, str(path), suffix_of(path), columns)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def read_lines(file: IO[bytes], name: str, suffix: str = "", columns: Columns | None = None) -> Iterator[Row]:
    """Yield the rows of an open file in the format of `suffix`; see `read_file`."""
    formats: dict[str, Callable[..., Iterator[Row]]] = {
        ".tsv": _tsv_rows,
        ".csv": _csv_rows,
        ".jsonl": _json_rows,
        ".ndjson": _json_rows,
        ".json": _json_rows,
    }
    with lines_of(file, name) as lines:
        yield from formats.get(suffix.lower(), _plain_rows)(lines, name, columns or Columns())


def _plain_rows(lines: Iterable[str], name: str, _columns: Columns) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        yield Row(f"{name} line {number}", line.rstrip("\r\n"), None)


def _tsv_rows(lines: Iterator[str], name: str, columns: Columns) -> Iterator[Row]:
    header = next(lines, "")
    again = chain([header], lines)
    if header.startswith('"'):
        yield from _quoted_rows(again, "\t", name, columns)
        return
    yield from _table_rows((line.rstrip("\r\n").split("\t") for line in again), name, columns)


def _csv_rows(lines: Iterator[str], name: str, columns: Columns) -> Iterator[Row]:
    header = next(lines, "")
    if header.lower().startswith("sep=") and len(header.strip()) == 5:  # Excel's own way to say it
        yield from _quoted_rows(lines, header[4], name, columns)
        return
    # Where the comma is the decimal mark, Excel separates by semicolons.
    wanted = [columns.text] if columns.text and columns.are_required else [columns.text, *TEXT_COLUMNS]
    delimiter = next(
        (
            each
            for each in _DELIMITERS
            if _column([cell.strip('" \r\n') for cell in header.split(each)], wanted) is not None
        ),
        ",",
    )
    yield from _quoted_rows(chain([header], lines), delimiter, name, columns)


def _quoted_rows(lines: Iterable[str], delimiter: str, name: str, columns: Columns) -> Iterator[Row]:
    csv.field_size_limit(min(maxsize, 2**31 - 1))
    try:
        yield from _table_rows(csv.reader(lines, strict=True, delimiter=delimiter), name, columns)
    except (csv.Error, TypeError) as error:  # TypeError: of an impossible delimiter
        raise UserError(f"{name} is no CSV file: {error}") from None


def _table_rows(cells: Iterable[list[str]], name: str, columns: Columns) -> Iterator[Row]:
    rows = iter(cells)
    header = [cell.strip() for cell in next(rows, [])]
    text, label = _chosen(header, columns, name)
    for number, row in enumerate(rows, 2):
        if row in ([], [""]):
            continue
        if len(row) != len(header):
            raise UserError(f"{name} line {number} has {len(row)} columns, not {len(header)}")
        yield Row(f"{name} line {number}", row[text], None if label is None else row[label])


def _chosen(there: Sequence[str], columns: Columns, place: str) -> tuple[int, int | None]:
    """Return the places of the columns of texts and of labels (None if there is none) among those `there`."""
    text, label = _column(there, [columns.text]), _column(there, [columns.label])
    for name, found, flag in (
        (columns.text, text, "--text-column"),
        (columns.label, label, "--label-column"),
    ):
        if name and found is None and columns.are_required:
            raise UserError(f"{place} has no column {name!r} for {flag}: there are {_listed(there)}")
    if text is None:
        text = _column(there, TEXT_COLUMNS)
    if label is None:
        label = _column(there, LABEL_COLUMNS)
    if text is None:
        raise UserError(
            f"{place} has no column {' or '.join(TEXT_COLUMNS)}: there are {_listed(there)}; choose one with "
            "--text-column"
        )
    columns.found = there[text], None if label is None else there[label]
    return text, label


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:8]) + (", …" if len(names) > 8 else "") or "none"


def _column(there: Sequence[str], names: Iterable[str | None]) -> int | None:
    """Return the place of the first of `names` that is `there`, exactly or but for capitals and blanks."""
    folded = [name.strip().casefold() for name in there]
    for name in names:
        if name in there:
            return there.index(name)
        if name and name.strip().casefold() in folded:
            return folded.index(name.strip().casefold())
    return None


def _json_rows(lines: Iterator[str], name: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of JSON Lines, of an array of objects or texts, or of an object of columns or rows."""
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("[") or not _is_json(first):
        whole = first + "".join(lines)
        yield from _array_rows(_parsed(whole, name), name, columns)
        return
    for number, line in enumerate(chain([first], lines), 1):
        if line.strip():
            yield _record_row(_parsed(line, f"{name} line {number}"), f"{name} line {number}", columns)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{place} is not JSON") from None


def _array_rows(content: Any, name: str, columns: Columns) -> Iterator[Row]:
    if isinstance(content, Mapping):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else [content]
    if not isinstance(content, list):
        raise UserError(f"{name} holds no rows: neither objects nor an array")
    for number, record in enumerate(content, 1):
        yield _record_row(record, f"{name} entry {number}", columns)


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        for batch in table.iter_batches():
            for number, record in enumerate(batch.to_pylist()):
                yield _record_row(record, f"{path} row {number}", columns)
    except UserError:
        raise
    except Exception as error:  # of a damaged file, Arrow's library raises nearly anything
        raise UserError(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from None


def _record_row(record: Any, place: str, columns: Columns) -> Row:
    if isinstance(record, str):
        return Row(place, record, None)
    if not isinstance(record, Mapping):
        raise UserError(f"{place} is no object with names, and no text")
    names = list(record)
    text, label = _chosen(names, columns, place)
    words, name = record[names[text]], None if label is None else names[label]
    if not isinstance(words, str):
        raise UserError(f"{place} has no text under {names[text]!r}, but {str(words)[:40]!r}")
    truth = None if name is None else record[name]
    return Row(place, words, None if truth is None else str(truth))
