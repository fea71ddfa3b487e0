"""The phrases that the text script reads: their data set or files, and the words that a network knows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.data import text
from lib.data.text import TextData, TextSplit
from lib.data.text_files import Columns
from lib.data.tokens import Encoded, Vocabulary
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.training.run import TrainingRun


@dataclass(frozen=True)
class DataSettings(Settings):
    """The flags that choose the phrases, and how words are taken apart."""

    dataset: str
    data_dir: str
    train_file: str | None
    valid_file: str | None
    test_file: str | None
    holdout: float
    limit: int | None
    ngrams: tuple[str, ...]
    text_column: str | None = None
    label_column: str | None = None

    def columns(self, *, are_required: bool = True) -> Columns:
        """Return which columns of the files hold the texts and the labels."""
        return Columns(self.text_column, self.label_column, are_required)


@dataclass(frozen=True)
class Reader:
    """The vocabulary and the class names of a network, as its checkpoint stores them."""

    vocabulary: Vocabulary
    classes: tuple[str, ...]

    @classmethod
    def of(cls, run: TrainingRun, settings: DataSettings, data: TextData | None = None) -> "Reader":
        """Return the reader of the run's checkpoint, or else one made from the training split of `data`.

        Raises:
            UserError: there is neither, or their classes differ.
        """
        if "vocabulary" in run.saved:
            reader = cls(Vocabulary(**run.saved["vocabulary"]), tuple(run.saved["classes"]))
        elif data:
            sizes = tuple(map(int, settings.ngrams))
            reader = cls(Vocabulary.of(data.train.phrases, sizes), data.classes)
        else:
            raise UserError(f"{run.source} holds weights alone: which words they read is not known")
        if data and data.classes != reader.classes:
            raise UserError(f"the checkpoint tells {reader.classes} apart, the data {data.classes}")
        return reader

    def plain(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.plain(), "classes": list(self.classes)}

    def encode(self, split: TextSplit, device: torch.device) -> tuple[Encoded, Tensor]:
        labels = torch.tensor(split.labels if split.labels is not None else [0] * len(split))
        return self.vocabulary.encode(split.phrases).to(device), labels.to(device)


def load(settings: DataSettings) -> TextData:
    """Load the data that the flags name; see `lib.data.text.load`."""
    files = {"train": settings.train_file, "valid": settings.valid_file, "test": settings.test_file}
    return text.load(
        settings.dataset,
        settings.data_dir,
        files,
        holdout=settings.holdout,
        limit=settings.limit,
        columns=settings.columns(),
    )


def named(columns: tuple[str, str | None]) -> dict[str, str]:
    """Return the columns that were taken, as fields of a log line."""
    text_column, label_column = columns
    return {"text_column": text_column} | ({"label_column": label_column} if label_column else {})


def describe(run: TrainingRun, data: TextData) -> None:
    """Log the columns that were taken, and the numbers of phrases and words of each split."""
    if data.columns:
        run.log.event("DATA", **named(data.columns))
    for name in ("train", "valid", "test"):
        split = getattr(data, name)
        if split:
            run.log.event("DATA", split=name, **text.statistics(split))
