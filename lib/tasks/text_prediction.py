"""Predictions for phrases from a file, a string or standard input, in order and in chunks."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from lib.data import text, text_files
from lib.data.text import words_of
from lib.data.text_files import Row
from lib.data.workers import in_workers
from lib.models import layers
from lib.runtime import distributed, threads
from lib.runtime.errors import Interrupted, warn
from lib.runtime.files import replaced, writable_file
from lib.runtime.interrupts import Signals
from lib.runtime.settings import Settings
from lib.runtime.spelling import cell
from lib.tasks.text_classification import PhraseNetwork, answer
from lib.tasks.text_data import DataSettings, Reader, load, named
from lib.training.run import TrainingRun

# Size of the chunks that are read, classified and written at a time, so that memory stays bounded.
CHUNK_ROWS = 16384
CHUNK_CHARACTERS = 4_000_000
# Share of unknown words above which predictions are guesses; SST-2 has about one per cent.
MANY_UNKNOWN = 0.3


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """The flags of `--predict-only`."""

    input: str | None
    format: str
    glue: bool
    out_file: str | None


class Chunk(NamedTuple):
    """Consecutive phrases of the input, each with its label or None.

    Attributes:
        first: number of the first phrase in the whole input.
        labelled: whether the first phrase of the whole input has one of the network's classes as its label.
    """

    first: int
    labelled: bool
    texts: list[str]
    labels: list[str | None]


def predict(
    run: TrainingRun,
    model: PhraseNetwork,
    reader: Reader,
    settings: PredictionSettings,
    source: DataSettings,
) -> None:
    """Write a prediction for each phrase of `--input`, or of the validation split, in the order of the input.

    With `--glue` the output is a GLUE submission, for the test split if there is no `--input`. Phrases are
    read, classified and written in chunks, so memory does not grow with their number.

    Raises:
        Interrupted: Ctrl-C; the predictions made by then are written.
    """
    if not distributed.is_main():
        return
    spell = {"tsv": _as_tsv, "jsonl": _as_json, "glue": _as_glue}[
        "glue" if settings.glue else settings.format
    ]

    def answered(chunk: Chunk) -> tuple[Counts, Tensor]:
        phrases = [words_of(phrase) for phrase in chunk.texts]
        probabilities = answer(model, reader, phrases, run.device, run.settings.amp).probabilities
        lines = "".join(f"{line}\n" for line in spell(chunk, probabilities, reader.classes))
        # Return a tensor, because it leaves the worker in shared memory. A long text would have to wait until
        # the pipe is read, and would wait for ever if the reading process had been killed.
        unknown = sum(len(reader.vocabulary.unknown(phrase)) for phrase in phrases)
        counts = Counts(len(phrases), sum(map(len, phrases)), unknown)
        return counts, torch.frombuffer(bytearray(lines, "utf-8", "replace"), dtype=torch.uint8)

    # Input typed at a terminal is answered line by line.
    typing = settings.input == "-" and sys.stdin.isatty()
    # A column that the checkpoint names was one of its training file.
    columns = source.columns(are_required=run.is_typed("text_column") or run.is_typed("label_column"))
    chunks = _chunks(_rows(settings, source, columns), 1 if typing else CHUNK_ROWS, reader.classes)
    done, where = Counts(0, 0, 0), settings.out_file or "standard output"
    with layers.evaluating(model), Signals() as signals, _destination(settings.out_file) as write_out:
        answers = map(answered, chunks) if typing else _on_all_cores(answered, chunks, run.device)
        for counts, lines in signals.until_received(answers):
            write_out(lines.numpy().tobytes().decode())
            done = Counts(*(a + b for a, b in zip(done, counts, strict=True)))
    if columns.found:
        run.log.event("DATA", **named(columns.found))
    run.log.event(
        "PREDICT", Examples=done.phrases, Words=done.words, Unknown_words=done.unknown_words, file=where
    )
    if done.unknown_words > MANY_UNKNOWN * done.words:
        warn(
            f"{done.unknown_words} of {done.words} words are not in the vocabulary that this network learnt: "
            "its answers say little"
        )
    if signals.received:
        raise Interrupted(f"interrupted: {where} has the first {done.phrases} answers", signals.received)


class Counts(NamedTuple):
    """Numbers of classified phrases, of their words, and of words that are not in the vocabulary."""

    phrases: int
    words: int
    unknown_words: int


def _on_all_cores(
    answered: Callable, chunks: Iterator, device: torch.device
) -> Iterable[tuple[Counts, Tensor]]:
    """Yield `answered(chunk)` for each chunk, in order; one worker process per core.

    Processes, not threads, because splitting and formatting text holds Python's global lock. Distributing
    each step of the LSTM over the cores is slower still, and ten times slower if another process uses a core.
    """
    first, second = next(chunks, None), next(chunks, None)
    given = [chunk for chunk in (first, second) if chunk]
    if len(given) < 2 or device.type != "cpu" or sys.platform != "linux":
        return map(answered, chain(given, chunks))
    # Forked workers share the network with this process; it need not be sent to them.
    return in_workers(answered, chain(given, chunks), threads.cores(), context="fork")


def _rows(settings: PredictionSettings, source: DataSettings, columns: text_files.Columns) -> Iterable[Row]:
    if settings.input == "-":
        return text_files.read_lines(sys.stdin.buffer, "standard input")
    if settings.input:
        return (
            text_files.read_file(settings.input, columns)
            if _names_a_file(settings.input)
            else [Row("--input", settings.input, None)]
        )
    if settings.glue:
        return text.unlabelled_rows(source.dataset, source.data_dir, source.test_file, columns)
    data = load(source)
    assert data.valid.labels is not None  # the validation split is always labelled
    facts = zip(data.valid.phrases, data.valid.labels, strict=True)
    return (Row("", " ".join(words), data.classes[label]) for words, label in facts)


def _names_a_file(given: str) -> bool:
    """Return whether `--input` is a path: the file exists, or the text has a known suffix and no space."""
    return os.path.exists(given) or (" " not in given and text_files.suffix_of(given) in text_files.SUFFIXES)


def _chunks(rows: Iterable[Row], most: int, classes: Sequence[str]) -> Iterator[Chunk]:
    chunk, characters = Chunk(0, False, [], []), 0
    for row in rows:
        if not (chunk.first or chunk.texts):
            chunk = chunk._replace(labelled=row.label in classes)
        chunk.texts.append(row.text)
        chunk.labels.append(row.label)
        characters += len(row.text)
        if len(chunk.texts) >= most or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = Chunk(chunk.first + len(chunk.texts), chunk.labelled, [], []), 0
    if chunk.texts:
        yield chunk


@contextlib.contextmanager
def _destination(path: str | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes text to the file, or at once to standard output."""
    if path is None:
        yield _write_at_once
        return
    with replaced(writable_file(path)) as file:

        def write(text: str) -> None:
            file.write(text.encode())

        yield write


def _write_at_once(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _as_tsv(chunk: Chunk, probabilities: Tensor, classes: Sequence[str]) -> Iterator[str]:
    if not chunk.first:
        truth = ["label"] if chunk.labelled else []
        yield "\t".join(["sentence", *truth, "prediction", "probability", *map(cell, classes)])
    for phrase, label, chosen, each in _answers(chunk, probabilities):
        truth = [cell(label or "")] if chunk.labelled else []
        shares = [f"{share:.6f}" for share in each]
        yield "\t".join([cell(phrase), *truth, cell(classes[chosen]), shares[chosen], *shares])


def _as_json(chunk: Chunk, probabilities: Tensor, classes: Sequence[str]) -> Iterator[str]:
    for phrase, label, chosen, each in _answers(chunk, probabilities):
        # Strict JSON has no NaN.
        rounded = [round(share, 6) if math.isfinite(share) else None for share in each]
        shares = dict(zip(classes, rounded, strict=True))
        record = {"sentence": phrase, "prediction": classes[chosen], "probabilities": shares}
        if label is not None:
            record["label"] = label
        yield json.dumps(record, ensure_ascii=False, allow_nan=False)


def _as_glue(chunk: Chunk, probabilities: Tensor, _classes: Sequence[str]) -> Iterator[str]:
    if not chunk.first:
        yield "index\tprediction"
    for number, (_, _, chosen, _) in enumerate(_answers(chunk, probabilities), chunk.first):
        yield f"{number}\t{chosen}"


def _answers(chunk: Chunk, probabilities: Tensor) -> Iterator[tuple[str, str | None, int, list[float]]]:
    chosen = probabilities.argmax(1).tolist()
    return zip(chunk.texts, chunk.labels, chosen, probabilities.tolist(), strict=True)
