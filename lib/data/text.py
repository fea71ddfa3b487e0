"""Labelled phrases: SST-2 from files or the Hub, the user's own files, and a tiny set included here."""

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from sys import stderr
from urllib.parse import urlsplit
from urllib.request import getproxies

from lib.data.sentences import fixed_permutation, held_out_rows
from lib.data.text_files import Columns, Row, read_file
from lib.data.tokens import tokenise
from lib.runtime import distributed
from lib.runtime.errors import UserError

SENTIMENTS = ("negative", "positive")
HUB = "stanfordnlp/sst2"
TINY = Path(__file__).with_name("tiny_sentiment.tsv")

# Phrases are truncated to this many words.
MOST_WORDS = 2000


@dataclass(frozen=True)
class TextSplit:
    """N phrases, each a tuple of words, and their class indices; `labels` is None if there are none."""

    phrases: Sequence[tuple[str, ...]]
    labels: Sequence[int] | None

    def __len__(self) -> int:
        return len(self.phrases)

    def rows(self, index: Iterable[int]) -> "TextSplit":
        index = list(index)
        labels = None if self.labels is None else [self.labels[i] for i in index]
        return TextSplit([self.phrases[i] for i in index], labels)


@dataclass(frozen=True)
class TextData:
    """The training and validation splits, and the labelled test split if there is one (used only once).

    `columns` are the names of the columns of texts and labels in the training file, where it names them.
    """

    train: TextSplit
    valid: TextSplit
    test: TextSplit | None
    classes: tuple[str, ...]
    columns: tuple[str, str | None] | None = None


def load(
    dataset: str,
    data_dir: str | Path,
    files: dict[str, str | None],
    *,
    holdout: float = 0,
    limit: int | None = None,
    columns: Columns | None = None,
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
        columns: the columns of texts and labels in the files; by default those of the usual names.

    Raises:
        UserError: missing, empty or damaged files, missing labels, only one class, or no network connection.
    """
    columns = columns or Columns()
    rows = _official_rows(dataset, Path(data_dir), files, columns)
    if not rows["valid"] and not holdout:
        raise UserError("there is nothing to validate on: give --valid-file, or a --holdout such as 0.1")
    classes = _classes(rows["train"])
    train, valid = _split(rows["train"], classes), _split(rows["valid"], classes)
    test = _split(rows["test"], classes) if rows["test"] else None
    if holdout:
        if test is None and rows["valid"]:
            test = valid
        kept, held_out = held_out_rows(train.phrases, holdout)
        train, valid = train.rows(kept), train.rows(held_out)
    if limit and limit < len(train):
        train = train.rows(sorted(fixed_permutation(len(train))[:limit]))
    return TextData(train, valid, test, classes, columns.found)


def unlabelled_rows(
    dataset: str, data_dir: str | Path, test_file: str | None, columns: Columns | None = None
) -> Iterable[Row]:
    """Return the rows of the unlabelled test split, in the order of the file.

    Raises:
        UserError: the data set is `tiny`, which has no such split; otherwise as `load`.
    """
    if test_file:
        return read_file(test_file, columns)
    if dataset == "tiny":
        raise UserError("--dataset tiny has no unlabelled test split: give --test-file or --input")
    return _sst2_rows(Path(data_dir), "test", columns or Columns())


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of raw text, at most the first `MOST_WORDS`."""
    return tuple(tokenise(text)[:MOST_WORDS])


def statistics(split: TextSplit) -> dict[str, int]:
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


def _official_rows(
    dataset: str, data_dir: Path, files: dict[str, str | None], columns: Columns
) -> dict[str, list[Row]]:
    if files.get("train"):
        # The training file is read last, so that the columns found are its.
        rows = {
            name: _rows_with_text(read_file(path, columns), path) if path else []
            for name, path in sorted(files.items(), key=lambda each: each[0] == "train")
        }
        return {name: rows[name] for name in files}
    if any(files.values()):
        raise UserError("--valid-file and --test-file go with a --train-file")
    if dataset == "tiny":
        return _tiny_rows()
    return {
        "train": _rows_with_text(_sst2_rows(data_dir, "train", columns), "the training split of sst2"),
        "valid": _rows_with_text(_sst2_rows(data_dir, "dev", columns), "the validation split of sst2"),
        "test": [],
    }


def _rows_with_text(rows: Iterable[Row], source: str) -> list[Row]:
    """Return the rows; refuse a split whose rows are all blank, or another would silently take its place."""
    listed = list(rows)
    if not any(row.text.strip() for row in listed):
        raise UserError(f"{source} holds no phrase: it has no rows, or all its rows are blank")
    return listed


def _tiny_rows() -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for number, line in enumerate(TINY.read_text(encoding="utf-8").splitlines()[1:], 2):
        split, text, label = line.split("\t")
        rows[split].append(Row(f"{TINY.name} line {number}", text, label))
    return rows


def _sst2_rows(data_dir: Path, split: str, columns: Columns) -> Iterable[Row]:
    """Return the rows of GLUE's `train`, `dev` or `test`, from a file if there is one, else from the Hub."""
    with distributed.main_first():
        for folder in (data_dir / "SST-2", data_dir):
            if (folder / f"{split}.tsv").is_file():
                return read_file(folder / f"{split}.tsv", columns)
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


def _split(rows: Iterable[Row], classes: tuple[str, ...]) -> TextSplit:
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
    return TextSplit(phrases, labels)


def _label(row: Row) -> str:
    if row.label is not None and row.label.strip() == "-1":
        raise UserError(
            f"{row.place} has no label: -1 stands for a missing one, as in GLUE's test files; write "
            "the labels -1 and 1 as 0 and 1, or by names"
        )
    if row.label is None or not row.label.strip():
        raise UserError(f"{row.place} has no label: every row needs one in a split for training or scoring")
    return row.label.strip()
