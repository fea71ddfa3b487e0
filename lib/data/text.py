"""Labelled phrases: SST-2 from files or the Hub, files of one's own, and a few written for this project."""

import csv
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from sys import maxsize, stderr
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from lib.data.tokens import tokenise
from lib.runtime import distributed
from lib.runtime.errors import UserError

# Which sentences are held out, or kept by a limit, stays the same whatever --seed says.
SPLIT_SEED = 0

TEXT_COLUMNS = ("sentence", "text", "phrase", "review")
LABEL_COLUMNS = ("label", "sentiment")
SENTIMENTS = ("negative", "positive")
HUB = "stanfordnlp/sst2"
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt")
TINY = Path(__file__).with_name("tiny_sentiment.tsv")

# Words of a phrase that are read; what stands behind them is not.
MOST_WORDS = 2000

# Sentences with a run of so many words in common are taken for one: with 6, the largest family has 8
# members on SST-2; with 5, common turns of phrase begin to chain.
SHARED_RUN = 6

# Longer phrases are looked for in a sentence by their first words.
BEGINNING = 8


class Row(NamedTuple):
    """A line of a file: where it stands, its text, and its label as written (None where there is none)."""

    place: str
    text: str
    label: str | None


@dataclass(frozen=True)
class Split:
    """N phrases, each a tuple of words, and their labels as numbers; `labels` is None without labels."""

    phrases: Sequence[tuple[str, ...]]
    labels: Sequence[int] | None

    def __len__(self) -> int:
        return len(self.phrases)

    def rows(self, index: Iterable[int]) -> "Split":
        index = list(index)
        labels = None if self.labels is None else [self.labels[i] for i in index]
        return Split([self.phrases[i] for i in index], labels)


@dataclass(frozen=True)
class TextData:
    """What a run trains on, validates on, and (where there is such a split, with labels) tests on once."""

    train: Split
    valid: Split
    test: Split | None
    classes: tuple[str, ...]


def load(
    dataset: str,
    data_dir: str | Path,
    files: dict[str, str | None],
    *,
    holdout: float = 0,
    limit: int | None = None,
) -> TextData:
    """Load `sst2`, `tiny`, or files of one's own.

    Args:
        dataset: which, where `files` names no training file.
        data_dir: holds `SST-2/train.tsv` and `SST-2/dev.tsv`, GLUE's layout, or these two themselves. Where
            it does not, the data set is loaded from the Hub.
        files: `train`, `valid` and `test` to files (TSV, CSV, JSON Lines, Parquet), or to None.
        holdout: validate on this share of the training *sentences*; all their phrases are kept from
            training. What would have been validated on is tested on, once.
        limit: keep a fixed subset of so many training phrases.

    Raises:
        UserError: missing or damaged files, no labels, one class alone, or no network.
    """
    rows = _official_rows(dataset, Path(data_dir), files)
    if not rows["valid"] and not holdout:
        raise UserError("there is nothing to validate on: give --valid-file, or a --holdout such as 0.1")
    classes = _classes(rows["train"])
    train, valid, test = (
        _split(rows[name], classes) if rows[name] else None for name in ("train", "valid", "test")
    )
    if holdout:
        train, held_out = hold_out(train, holdout)
        valid, test = held_out, test or valid
    if limit and limit < len(train):
        train = train.rows(sorted(_shuffled(len(train))[:limit]))
    return TextData(train, valid, test, classes)


def unlabelled_rows(dataset: str, data_dir: str | Path, test_file: str | None) -> Iterable[Row]:
    """Return the rows of the test split, whose labels are not published, in its order.

    Raises:
        UserError: `tiny` has none; otherwise as `load`.
    """
    if test_file:
        return read_file(test_file)
    if dataset == "tiny":
        raise UserError("--dataset tiny has no unlabelled test split: give --test-file or --input")
    return _sst2_rows(Path(data_dir), "test")


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of raw text; of a very long one, the first `MOST_WORDS`."""
    return tuple(tokenise(text)[:MOST_WORDS])


def statistics(split: Split) -> dict[str, int]:
    """Count `phrases`, `words`, `duplicates` (rows beyond the first) and `contradictory` ones.

    Contradictory are the different phrases that stand there with more than one label.
    """
    labels: dict[tuple[str, ...], set[int]] = {}
    for phrase, label in zip(split.phrases, split.labels, strict=True):
        labels.setdefault(phrase, set()).add(label)
    return {
        "phrases": len(split),
        "words": sum(map(len, split.phrases)),
        "duplicates": len(split) - len(labels),
        "contradictory": sum(len(each) > 1 for each in labels.values()),
    }


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """Split off a share of the sentences of a corpus of phrases: `(the rest, the sentences held out)`.

    A sentence is a phrase that is part of no longer one. Phrases of the sentences held out stay in the
    rest only where they are part of another sentence, too (`funny`, `the film`): so a phrase in the rest
    tells of the sentences held out what it would tell of those of an official validation split.

    Raises:
        UserError: one of the two would be empty.
    """
    owners, sentences = _sentences(split.phrases)
    groups = _related(sentences)
    names = sorted(set(groups))
    chosen = {names[i] for i in _shuffled(len(names))[: round(share * len(names))]}
    held = [groups[sentence] in chosen for sentence in range(len(sentences))]
    kept, out = [], []
    for row, phrase in enumerate(split.phrases):
        if not all(held[sentence] for sentence in owners[phrase]):
            kept.append(row)
        elif phrase == sentences[owners[phrase][0]]:
            out.append(row)
    if not kept or not out:
        raise UserError(f"--holdout {share:g} of {len(names)} sentences leaves nothing on one side")
    return split.rows(kept), split.rows(out)


def _sentences(phrases: Sequence[tuple[str, ...]]) -> tuple[dict, list]:
    """Return each phrase's sentences (as positions in the second list), and the sentences."""
    owners: dict[tuple[str, ...], list[int]] = {phrase: [] for phrase in phrases}
    sentences: list[tuple[str, ...]] = []
    lengths: dict[tuple[str, ...], set[int]] = {}  # of phrases that begin so
    for phrase in owners:
        if len(phrase) >= BEGINNING:
            lengths.setdefault(phrase[:BEGINNING], set()).add(len(phrase))
    for phrase in sorted(owners, key=len, reverse=True):
        if owners[phrase]:
            continue
        for part in _parts(phrase, lengths):
            # The same words may come twice in a sentence.
            if part in owners and len(sentences) not in owners[part][-1:]:
                owners[part].append(len(sentences))
        sentences.append(phrase)
    return owners, sentences


def _parts(phrase: tuple[str, ...], lengths: Mapping[tuple[str, ...], set[int]]) -> Iterator[tuple[str, ...]]:
    """Yield the parts of a phrase that may be phrases: all that are short, and longer ones that begin as one.

    All parts there are would be as many as the square of the phrase's words.
    """
    for first in range(len(phrase)):
        for end in range(first + 1, min(first + BEGINNING, len(phrase) + 1)):
            yield phrase[first:end]
        for length in lengths.get(phrase[first : first + BEGINNING], ()):
            yield phrase[first : first + length]


def _related(sentences: Sequence[tuple[str, ...]]) -> list[int]:
    """Return a number for each sentence, the same for those with `SHARED_RUN` words in common."""
    parents = list(range(len(sentences)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    first_with: dict[tuple[str, ...], int] = {}
    for number, sentence in enumerate(sentences):
        for start in range(len(sentence) - SHARED_RUN + 1):
            other = first_with.setdefault(sentence[start : start + SHARED_RUN], number)
            parents[root(number)] = root(other)
    return [root(i) for i in range(len(sentences))]


def _shuffled(count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()


def _official_rows(dataset: str, data_dir: Path, files: dict[str, str | None]) -> dict[str, list[Row]]:
    if files.get("train"):
        return {name: list(read_file(path)) if path else [] for name, path in files.items()}
    if any(files.values()):
        raise UserError("--valid-file and --test-file go with a --train-file")
    if dataset == "tiny":
        return _tiny_rows()
    return {
        "train": list(_sst2_rows(data_dir, "train")),
        "valid": list(_sst2_rows(data_dir, "dev")),
        "test": [],
    }


def _tiny_rows() -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for number, line in enumerate(TINY.read_text(encoding="utf-8").splitlines()[1:], 2):
        split, text, label = line.split("\t")
        rows[split].append(Row(f"{TINY.name} line {number}", text, label))
    return rows


def _sst2_rows(data_dir: Path, split: str) -> Iterable[Row]:
    """Return the rows of GLUE's `train`, `dev` or `test`, of a file where there is one, or of the Hub."""
    with distributed.main_first():
        for folder in (data_dir / "SST-2", data_dir):
            if (folder / f"{split}.tsv").is_file():
                return read_file(folder / f"{split}.tsv")
        return _hub_rows(data_dir, {"dev": "validation"}.get(split, split))


def _hub_rows(data_dir: Path, split: str) -> list[Row]:
    _go_offline_if_unreachable()
    try:
        # Standard output is the log's.
        with redirect_stdout(stderr):
            from datasets import load_dataset

            loaded = load_dataset(HUB, split=split)
    except Exception as error:  # the library raises whatever its network stack does
        raise UserError(
            f"sst2 is not in {data_dir} and could not be loaded from the Hub ({type(error).__name__}): put "
            f"train.tsv and dev.tsv of GLUE's SST-2 into {data_dir / 'SST-2'}, name another --data-dir, or "
            f"take --dataset tiny, which needs no download"
        ) from None
    facts = zip(loaded["sentence"], loaded["label"], strict=True)
    return [Row(f"{HUB} {split} row {i}", text, str(label)) for i, (text, label) in enumerate(facts)]


def _go_offline_if_unreachable() -> None:
    """Leave the Hub's library to its cache where there is no way out: it would retry for half a minute."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if getproxies():
        return
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the names of the labels of the training rows; 0 and 1 are negative and positive."""
    labels = {_label(row) for row in rows if row.text.strip()}
    if len(labels) < 2:
        raise UserError(f"training needs phrases of two classes at least, and has those of {len(labels)}")
    return SENTIMENTS if labels <= {*"01", *SENTIMENTS} else tuple(sorted(labels))


def _split(rows: Iterable[Row], classes: tuple[str, ...]) -> Split:
    """Rows to words and numbers; rows without text are left out."""
    numbers = {name: number for number, name in enumerate(classes)}
    if classes == SENTIMENTS:
        numbers |= {"0": 0, "1": 1}
    phrases, labels = [], []
    for row in rows:
        if not row.text.strip():
            continue
        label = _label(row)
        if label not in numbers:
            raise UserError(
                f"{row.place}: label {label!r} is none of the training labels {', '.join(numbers)}"
            )
        phrases.append(words_of(row.text))
        labels.append(numbers[label])
    return Split(phrases, labels)


def _label(row: Row) -> str:
    if row.label is None or row.label.strip() in ("", "-1"):
        raise UserError(
            f"{row.place} has no label: a split that is learnt from or scored needs one in every row"
        )
    return row.label.strip()


def read_file(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a file as they are read: .tsv, .csv, .jsonl, .parquet, or lines of plain text.

    All but plain text name their columns: the text's is one of `TEXT_COLUMNS`, the label's one of
    `LABEL_COLUMNS`. A TSV has no quoting, as GLUE's. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        UserError: no such file, no such column, or a line that cannot be read, by its number.
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
    """Yield the rows of an open file, `suffix` being that of its format; see `read_file`."""
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
