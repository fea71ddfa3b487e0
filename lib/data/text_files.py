"""Files of texts, one a row: TSV, CSV, JSON Lines, Parquet, or lines of plain text."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from sys import maxsize
from typing import BinaryIO, NamedTuple

from lib.runtime.errors import UserError

TEXT_COLUMNS = ("sentence", "text", "phrase", "review")
LABEL_COLUMNS = ("label", "sentiment")
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt")


class Row(NamedTuple):
    """One line of a file: its place (for error messages), its text, and its label as written, or None."""

    place: str
    text: str
    label: str | None


def read_file(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a .tsv, .csv, .jsonl or .parquet file, or of lines of plain text, as they are read.

    All formats but plain text name their columns: the text is in one of `TEXT_COLUMNS`, the label in one of
    `LABEL_COLUMNS`. TSV files have no quoting, like GLUE's. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        UserError: the file or the column does not exist, or a line (named by its number) cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is a folder, not a file" if path.is_dir() else f"there is no file {path}")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open("rb") as file:
            yield from read_lines(file, str(path), path.suffix)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_lines(file: BinaryIO, name: str, suffix: str = "") -> Iterator[Row]:
    """Yield the rows of an open file in the format of `suffix`; see `read_file`."""
    formats: dict[str, Callable] = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
    return formats.get(suffix, _plain_rows)((line.decode("utf-8", "replace") for line in file), name)


def _plain_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        yield Row(f"{name} line {number}", line.rstrip("\r\n"), None)


def _tsv_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    yield from _table_rows((line.rstrip("\r\n").split("\t") for line in lines), name)


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    csv.field_size_limit(min(maxsize, 2**31 - 1))
    try:
        yield from _table_rows(csv.reader(lines, strict=True), name)
    except csv.Error as error:
        raise UserError(f"{name} is no CSV file: {error}") from None


def _table_rows(cells: Iterable[list[str]], name: str) -> Iterator[Row]:
    rows = iter(cells)
    header = [cell.strip().lower().removeprefix("\ufeff") for cell in next(rows, [])]
    text, label = _column(header, TEXT_COLUMNS), _column(header, LABEL_COLUMNS)
    if text is None:
        raise UserError(f"{name} has no column {' or '.join(TEXT_COLUMNS)}: its first line is {header}"[:300])
    for number, row in enumerate(rows, 2):
        if row in ([], [""]):
            continue
        if len(row) != len(header):
            raise UserError(f"{name} line {number} has {len(row)} columns, not {len(header)}")
        yield Row(f"{name} line {number}", row[text], None if label is None else row[label])


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _jsonl_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{name} line {number} is not JSON") from None
        yield _record_row(record if isinstance(record, dict) else {}, f"{name} line {number}")


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(path)
        for batch in table.iter_batches():
            for number, record in enumerate(batch.to_pylist()):
                yield _record_row(record, f"{path} row {number}")
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _record_row(record: dict, place: str) -> Row:
    text = next((record[key] for key in TEXT_COLUMNS if key in record), None)
    label = next((record[key] for key in LABEL_COLUMNS if key in record), None)
    if not isinstance(text, str):
        raise UserError(f"{place} has no text under {' or '.join(TEXT_COLUMNS)}")
    return Row(place, text, None if label is None else str(label))
