"""Labelled phrases: SST-2 from files or the Hub, the user's own files, and a tiny set included here."""

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

# The sentences that are held out, or kept by a limit, do not depend on --seed.
SPLIT_SEED = 0

TEXT_COLUMNS = ("sentence", "text", "phrase", "review")
LABEL_COLUMNS = ("label", "sentiment")
SENTIMENTS = ("negative", "positive")
HUB = "stanfordnlp/sst2"
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt")
TINY = Path(__file__).with_name("tiny_sentiment.tsv")

# Phrases are truncated to this many words.
MOST_WORDS = 2000

# Sentences that share a run of this many words are held out together. With 6, the largest group on SST-2 has
# 8 sentences; with 5, common turns of phrase begin to chain unrelated sentences together.
SHARED_RUN = 6

# Phrases of at least this many words are looked up by their first words.
BEGINNING = 8


class Row(NamedTuple):
    """One line of a file: its place (for error messages), its text, and its label as written, or None."""

    place: str
    text: str
    label: str | None


@dataclass(frozen=True)
class Split:
    """N phrases, each a tuple of words, and their class indices; `labels` is None if there are none."""

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
    """The training and validation splits, and the labelled test split if there is one (used only once)."""

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
    """Load `sst2`, `tiny`, or the user's own files.

    Args:
        dataset: name of the data set, used if `files` has no training file.
        data_dir: folder with `SST-2/train.tsv` and `SST-2/dev.tsv` (GLUE's layout), or with these two files
            themselves. If they are missing, the data set is loaded from the Hub.
        files: paths of the splits `train`, `valid` and `test` (TSV, CSV, JSON Lines, Parquet), or None.
        holdout: validate on this share of the training *sentences*; all their phrases are removed from
            training. The original validation split then becomes the test split.
        limit: keep a fixed subset of this many training phrases.

    Raises:
        UserError: missing or damaged files, missing labels, only one class, or no network connection.
    """
    rows = _official_rows(dataset, Path(data_dir), files)
    if not rows["valid"] and not holdout:
        raise UserError("there is nothing to validate on: give --valid-file, or a --holdout such as 0.1")
    classes = _classes(rows["train"])
    train, valid = _split(rows["train"], classes), _split(rows["valid"], classes)
    test = _split(rows["test"], classes) if rows["test"] else None
    if holdout:
        train, held_out = hold_out(train, holdout)
        valid, test = held_out, test or (valid if rows["valid"] else None)
    if limit and limit < len(train):
        train = train.rows(sorted(_shuffled(len(train))[:limit]))
    return TextData(train, valid, test, classes)


def unlabelled_rows(dataset: str, data_dir: str | Path, test_file: str | None) -> Iterable[Row]:
    """Return the rows of the unlabelled test split, in the order of the file.

    Raises:
        UserError: the data set is `tiny`, which has no such split; otherwise as `load`.
    """
    if test_file:
        return read_file(test_file)
    if dataset == "tiny":
        raise UserError("--dataset tiny has no unlabelled test split: give --test-file or --input")
    return _sst2_rows(Path(data_dir), "test")


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of raw text, at most the first `MOST_WORDS`."""
    return tuple(tokenise(text)[:MOST_WORDS])


def statistics(split: Split) -> dict[str, int]:
    """Count `phrases`, `words`, `duplicates` and `contradictory` phrases of a labelled split.

    Duplicates are the repetitions of a phrase, not counting its first row. A phrase is contradictory if it
    occurs with more than one label; it counts once.
    """
    if split.labels is None:
        raise ValueError("the statistics of a split need its labels")
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
    """Hold out a share of the sentences of a corpus of phrases: `(the rest, the sentences held out)`.

    A sentence is a phrase that is not part of a longer phrase. A phrase of a held-out sentence stays in the
    rest only if it also occurs in a sentence of the rest (`funny`, `the film`). So the rest reveals no more
    about the held-out sentences than it does about those of an official validation split.

    Raises:
        UserError: one of the two parts would be empty.
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
    """Find the sentences of a corpus: `(indices of the sentences that contain each phrase, sentences)`."""
    owners: dict[tuple[str, ...], list[int]] = {phrase: [] for phrase in phrases}
    sentences: list[tuple[str, ...]] = []
    lengths: dict[tuple[str, ...], set[int]] = {}  # by their first words
    for phrase in owners:
        if len(phrase) >= BEGINNING:
            lengths.setdefault(phrase[:BEGINNING], set()).add(len(phrase))
    for phrase in sorted(owners, key=len, reverse=True):
        if owners[phrase]:
            continue
        for part in _parts(phrase, lengths):
            # A phrase may occur twice in one sentence.
            if part in owners and len(sentences) not in owners[part][-1:]:
                owners[part].append(len(sentences))
        sentences.append(phrase)
    return owners, sentences


def _parts(phrase: tuple[str, ...], lengths: Mapping[tuple[str, ...], set[int]]) -> Iterator[tuple[str, ...]]:
    """Yield all short parts of a phrase, and the longer parts that begin like a known phrase.

    Trying every part would take time quadratic in the length of the phrase.
    """
    for first in range(len(phrase)):
        for end in range(first + 1, min(first + BEGINNING, len(phrase) + 1)):
            yield phrase[first:end]
        for length in lengths.get(phrase[first : first + BEGINNING], ()):
            yield phrase[first : first + length]


def _related(sentences: Sequence[tuple[str, ...]]) -> list[int]:
    """Group the sentences that share a run of `SHARED_RUN` words: return a group number for each sentence.

    Groups are merged by union-find, because the relation is transitive.
    """
    parents = list(range(len(sentences)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]  # path halving
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
    """Return the rows of GLUE's `train`, `dev` or `test`, from a file if there is one, else from the Hub."""
    with distributed.main_first():
        for folder in (data_dir / "SST-2", data_dir):
            if (folder / f"{split}.tsv").is_file():
                return read_file(folder / f"{split}.tsv")
        return _hub_rows(data_dir, {"dev": "validation"}.get(split, split))


def _hub_rows(data_dir: Path, split: str) -> list[Row]:
    _go_offline_if_unreachable()
    try:
        # Standard output is reserved for the log.
        with redirect_stdout(stderr):
            from datasets import load_dataset

            loaded = load_dataset(HUB, split=split)
    except Exception as error:  # the library passes on the exceptions of its network stack
        raise UserError(
            f"sst2 is not in {data_dir} and could not be loaded from the Hub ({type(error).__name__}): put "
            f"train.tsv and dev.tsv of GLUE's SST-2 into {data_dir / 'SST-2'}, name another --data-dir, or "
            f"take --dataset tiny, which needs no download"
        ) from None
    facts = zip(loaded["sentence"], loaded["label"], strict=True)
    return [Row(f"{HUB} {split} row {i}", text, str(label)) for i, (text, label) in enumerate(facts)]


def _go_offline_if_unreachable() -> None:
    """Set the Hub's library offline if its host is unreachable: it would retry for half a minute."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if getproxies():
        return
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the class names of the training rows; the labels 0 and 1 mean negative and positive."""
    labels = {_label(row) for row in rows if row.text.strip()}
    if len(labels) < 2:
        raise UserError(f"training needs phrases of at least two classes, and has {len(labels)}")
    return SENTIMENTS if labels <= {*"01", *SENTIMENTS} else tuple(sorted(labels))


def _split(rows: Iterable[Row], classes: tuple[str, ...]) -> Split:
    """Turn rows into words and class indices; rows without text are left out."""
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
        raise UserError(f"{row.place} has no label: every row needs one in a split for training or scoring")
    return row.label.strip()


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
