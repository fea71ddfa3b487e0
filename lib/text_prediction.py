"""Answers to phrases from a file, a string or standard input, in order, a chunk at a time."""

import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import distributed
from lib.data import text
from lib.data.text import Row, words_of
from lib.files import replaced, writable_file
from lib.models import layers
from lib.session import Session
from lib.text_classification import Reader, answer, load

# What is read, answered and written at a time, whatever the length of the input.
CHUNK_ROWS = 16384
CHUNK_CHARACTERS = 4_000_000


def predict(run: Session, model: nn.Module, reader: Reader) -> None:
    """Write a line for each phrase of `--input`, or of the validation split, in the order they came in.

    With `--glue`, in the format of a submission to it, of the test split where there is no `--input`. Phrases
    are read, answered and written a chunk at a time, so memory does not grow with their number.
    """
    if not distributed.is_main():
        return
    spell = {"tsv": _as_tsv, "jsonl": _as_json, "glue": _as_glue}[
        "glue" if run.flags.glue else run.flags.format
    ]

    def answered(chunk: tuple[int, list[Row]]) -> tuple[int, str]:
        first, rows = chunk
        phrases = [words_of(row.text) for row in rows]
        probabilities = answer(model, reader, phrases, run.device, run.flags.amp).probabilities
        lines = spell(rows, probabilities, reader.classes, first)
        return len(rows), "".join(f"{line}\n" for line in lines)

    # Somebody who types at a terminal is answered line by line.
    typing = run.flags.input == "-" and sys.stdin.isatty()
    chunks = _chunks(_rows(run), 1 if typing else CHUNK_ROWS)
    done = 0
    with layers.evaluating(model), _destination(run.flags.out_file) as write_out:
        for count, lines in map(answered, chunks) if typing else _in_threads(answered, chunks):
            write_out(lines)
            done += count
    run.log.event("PREDICT", Examples=done, file=run.flags.out_file or "standard output")


def _in_threads(function: Callable, items: Iterable) -> Iterator:
    """Yield `function(item)` of each item, in order; of few items at a time, one on each core.

    Sharing out every step of an LSTM over the cores instead is slower, and ten times so where another
    process wants one of them.
    """
    workers = torch.get_num_threads()
    waiting: deque = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _rows(run: Session) -> Iterable[Row]:
    flags = run.flags
    if flags.input == "-":
        return text.read_lines(sys.stdin.buffer, "standard input")
    if flags.input:
        return (
            text.read_file(flags.input) if _names_a_file(flags.input) else [Row("--input", flags.input, None)]
        )
    if flags.glue:
        return text.unlabelled_rows(flags.dataset, flags.data_dir, flags.test_file)
    data = load(flags)
    facts = zip(data.valid.phrases, data.valid.labels, strict=True)
    return (Row("", " ".join(words), data.classes[label]) for words, label in facts)


def _names_a_file(given: str) -> bool:
    """Whether `--input` is a path: what is one, or what looks like one and like no phrase."""
    return Path(given[:255]).exists() or (" " not in given and Path(given).suffix in text.SUFFIXES)


def _chunks(rows: Iterable[Row], most: int) -> Iterator[tuple[int, list[Row]]]:
    """Yield rows by the chunk, with the number of the first."""
    first, chunk, characters = 0, [], 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text)
        if len(chunk) >= most or characters >= CHUNK_CHARACTERS:
            yield first, chunk
            first, chunk, characters = first + len(chunk), [], 0
    if chunk:
        yield first, chunk


@contextlib.contextmanager
def _destination(path: str | None) -> Iterator[Callable[[str], None]]:
    """Yield what writes text to the file, or to standard output as soon as it has it."""
    if path is None:
        yield lambda text: (sys.stdout.write(text), sys.stdout.flush())
        return
    with replaced(writable_file(path)) as file:
        yield lambda text: file.write(text.encode())


def _as_tsv(rows: Sequence[Row], probabilities: Tensor, classes: Sequence[str], first: int) -> Iterator[str]:
    labelled = rows[0].label is not None and rows[0].label in classes
    if not first:
        yield "\t".join(["sentence", *(["label"] if labelled else []), "prediction", "probability", *classes])
    for row, chosen, each in _answers(rows, probabilities):
        truth = [row.label] if labelled else []
        shares = [f"{share:.6f}" for share in each]
        yield "\t".join([" ".join(row.text.split()), *truth, classes[chosen], shares[chosen], *shares])


def _as_json(
    rows: Sequence[Row], probabilities: Tensor, classes: Sequence[str], _first: int
) -> Iterator[str]:
    for row, chosen, each in _answers(rows, probabilities):
        shares = {name: round(share, 6) for name, share in zip(classes, each, strict=True)}
        record = {"sentence": row.text, "prediction": classes[chosen], "probabilities": shares}
        if row.label is not None:
            record["label"] = row.label
        yield json.dumps(record, ensure_ascii=False)


def _as_glue(
    rows: Sequence[Row], probabilities: Tensor, _classes: Sequence[str], first: int
) -> Iterator[str]:
    if not first:
        yield "index\tprediction"
    for number, (_, chosen, _) in enumerate(_answers(rows, probabilities), first):
        yield f"{number}\t{chosen}"


def _answers(rows: Sequence[Row], probabilities: Tensor) -> Iterator[tuple[Row, int, list[float]]]:
    return zip(rows, probabilities.argmax(1).tolist(), probabilities.tolist(), strict=True)
