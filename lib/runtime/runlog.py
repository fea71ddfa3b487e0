"""The format of log lines. This module alone writes and parses them.

One event per line, `YYYY-MM-DD HH:MM:SS,mmm - NAME - LEVEL - [TAG] key=value key=value`. Training writes
these keys, and the curves are drawn from them:

    [RUN] id=… dataset=… model=… seed=…                 a run begins; with Resume_step=N it is resumed
    [PLAN] Steps_per_epoch=469
    [TRAIN] Epoch=1 Step=250 Training_loss=0.41231 Learning_rate=0.001 Examples_per_second=…
    [VALID] Epoch=1 Step=250 Valid_loss=0.3811 Valid_accuracy=0.8831
    [BEST] Epoch=1 Step=250 Valid_loss=0.3811 Valid_accuracy=0.8831 file=…
    [EVAL] …, [TEST] …, [MODEL] …                       numbers, or free text such as a table

Epochs are counted from 1; earlier versions counted them from 0, and wrote no numbers into [BEST] lines.
After a [RUN] line, every event ends with the run's id, `run=…`, because several runs may write into one file
at the same time. Logs of earlier versions lack it.
"""

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from lib.runtime import interleaved, streams
from lib.runtime.errors import warn
from lib.runtime.interleaved import Event
from lib.runtime.logged_run import Run
from lib.runtime.spelling import printable
from lib.runtime.tensorboard import Board, is_number
from lib.runtime.text_lines import without_colours


class RunLog:
    """Writer of log lines, each flushed at once, with a copy of their numbers for TensorBoard.

    If a line cannot be written (the reader of a pipe is gone, the disk is full), the run goes on without its
    log, after one warning.

    Args:
        name: the NAME in every line.
        stream: where the lines go; None for the current `sys.stdout`, looked up at every line.
        tensorboard: folder for TensorBoard's files, in which each run has a folder of its own, named by its
            id; None for no such files.
        enabled: whether to write at all; False on every rank but the first.
    """

    def __init__(
        self,
        name: str,
        *,
        stream: TextIO | None = None,
        tensorboard: str | Path | None = None,
        enabled: bool = True,
    ) -> None:
        self._name = name
        self._stream = stream
        self._board = None if tensorboard is None else Board(tensorboard)
        self._enabled = enabled
        self._is_lost = False
        self._run: str | None = None

    def event(self, tag: str, /, **fields: Any) -> None:
        """Write `[TAG] key=value …`: floats with six significant digits, strings in quotes if they need them.

        A `[RUN]` line with an `id` begins that run, to which all later events belong. If there is a field
        `Step`, TensorBoard gets the other numbers as scalars `TAG/key` at that step.

        Raises:
            UserError: TensorBoard is not installed, or its folder cannot be written.
        """
        if not self._enabled:
            return
        fields = {key: _plain(value) for key, value in fields.items()}
        owner = {} if self._run is None else {"run": self._run}
        if tag == "RUN" and "id" in fields:
            self.go_on_with(str(fields["id"]))
            owner = {}
        self._write(tag, " ".join(f"{key}={_spell(value)}" for key, value in (fields | owner).items()))
        if self._board is not None:
            self._board.add(tag, fields)

    def numbers(self, tag: str, /, **fields: Any) -> None:
        """Give the numbers of an event to TensorBoard, without a line in the log."""
        if self._enabled and self._board is not None:
            self._board.add(tag, {key: _plain(value) for key, value in fields.items()})

    def text(self, tag: str, text: str) -> None:
        """Write `[TAG] text`, one log line for each line of `text`; TensorBoard gets nothing."""
        if self._enabled:
            for line in text.splitlines():
                self._write(tag, printable(line))

    def go_on_with(self, run: str) -> None:
        """Let all later events belong to the run with this id; a `[RUN]` line does so by itself."""
        self._run = run
        if self._board is not None:
            self._board.go_on_with(run)

    def close(self) -> None:
        """Finish TensorBoard's file. The stream stays open, because this class did not open it."""
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, tag: str, text: str) -> None:
        if self._is_lost:
            return
        time = datetime.now().isoformat(sep=" ", timespec="milliseconds").replace(".", ",")
        stream = self._stream or sys.stdout
        try:
            stream.write(f"{time} - {self._name} - INFO - [{tag}] {text}".rstrip() + "\n")
            stream.flush()
        except OSError as error:
            self._is_lost = True
            streams.abandon(stream)
            gone = isinstance(error, BrokenPipeError)
            why = "its reader is gone" if gone else f"it cannot be written ({error.strerror})"
            warn(f"the log ends here, because {why}; files are written as before")


def _plain(value: Any) -> bool | int | float | str | None:
    """Return a field's value as a plain Python value: a number, bool, None or string, else its `str`."""
    if hasattr(value, "item"):  # a NumPy scalar, a one-element tensor
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _spell(value: bool | int | float | str | None) -> str:
    """Return the text of `value` after `key=`, which `_fields` parses back to the same value."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return str(value)
    if value.isprintable() and '"' not in value and _fields(f"key={value}") == {"key": value}:
        return value
    # Quote a string with blanks, and one that would be parsed as a number or as a word such as None. Letters
    # of all scripts stay as they are, unless the string has unprintable characters (a lone surrogate, a
    # newline): then it is escaped.
    return json.dumps(value, ensure_ascii=not value.isprintable()).replace("\x7f", "\\u007f")


@dataclass(frozen=True)
class ParsedLog:
    """The contents of a log.

    Attributes:
        runs: its runs, newest last.
        skipped: number of lines that could not be parsed (blank ones aside).
        together: the ids of runs that wrote at the same time, in groups.
        is_guessed: whether lines were told apart by their steps and losses, because they lack a run's id.
    """

    runs: list[Run]
    skipped: int
    together: tuple[tuple[str, ...], ...] = ()
    is_guessed: bool = False


def parse(lines: Iterable[str | bytes]) -> ParsedLog:
    """Parse log lines as a file yields them, each with its newline. No input raises an error.

    A line without a newline is still being written, or was cut short by a kill. It is skipped, because the
    `0.4` at its end may be the beginning of `0.41231`.

    A [RUN] line begins a run, or resumes the run with the same id. Events of that run after `Resume_step` are
    dropped, because the resumed run repeats these steps; without a `Resume_step`, all its events are dropped.
    In a log without [RUN] lines, a new run begins where `Step` decreases.

    An event belongs to the run that it names. Those of earlier versions name none, and belong to the newest
    run, unless the steps say that several runs wrote at the same time; see `interleaved`.
    """
    reader = _Reader()
    for line in lines:
        reader.read(line.decode("utf-8", "replace") if isinstance(line, bytes) else line)
    return reader.result()


_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - ", re.ASCII)
_PART_OF_STAMP = re.compile(r"\d{1,4}(-[\d:, -]*)?")
_MOST_AT_ONCE = 8  # runs that are looked for behind the lines of one log
_TAGGED = re.compile(r"(?:.*? - )?\[(\w+)\](?:\s|$)")
# Possessive quantifiers, and matches that begin only after a blank, keep the time linear in the length of a
# line. An integer of more than 300 digits is read as an infinite float, so that every int here can become a
# float.
_FIELD = re.compile(
    r"""(?:^|(?<=\s)) ([^\s=]++) =
    (?: ([+-]?\d{1,300}+)
      | ([+-]?(?:\d++\.?\d*+|\.\d++)(?:e[+-]?\d++)?+ | [+-]?(?:nan|inf|infinity))
      | ("(?:[^"\\]|\\.)*+")
      | (\S*)
    ) (?=\s|$)""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_WORDS = {"True": True, "False": False, "None": None}


class _Reader:
    """Parser of log lines, which sorts the events into runs."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.skipped = 0
        self._unnamed: list[Event] = []  # since the latest [RUN] line, those that name no run
        self._writer: str | None = None  # of the latest [TRAIN] line
        self._begun: set[str] = set()  # runs with a [TRAIN] line since their latest [RUN] line
        self._together: dict[tuple[str, ...], None] = {}
        self._is_guessed = False

    def result(self) -> ParsedLog:
        """Return what has been read."""
        self._sort_unnamed()
        return ParsedLog(self.runs, self.skipped, tuple(self._together), self._is_guessed)

    def read(self, line: str) -> None:
        line = without_colours(line)
        if not line.strip():
            return
        # A kill can cut a line anywhere, and the next run then appends its first line to the rest. So a time
        # stamp within a line begins the event, and the text before it is skipped.
        *before, rest = _STAMP.split(line)
        tagged = _TAGGED.match(rest)
        self.skipped += any(map(str.strip, before)) and not _is_prefix(before)
        if not tagged or not line.endswith("\n"):
            self.skipped += 1
        elif fields := _fields(rest[tagged.end() :]):
            self._take(tagged[1], fields)

    def _take(self, tag: str, fields: dict) -> None:
        if tag == "RUN":
            if "id" in fields:  # a [RUN] line without an id is a remark about the run
                self._sort_unnamed()
                self._begin(fields)
            return
        if "Total_step" in fields:  # the name of `Step` in [VALID] lines of older logs
            fields["Step"] = fields.pop("Total_step")
        if "run" in fields:
            self._add_named(str(fields.pop("run")), tag, fields)
        else:
            self._unnamed.append((tag, fields))

    def _begin(self, fields: dict) -> None:
        name = str(fields["id"])
        run = self._find(name)
        if run is None:
            run = Run(name)
        else:
            self.runs.remove(run)
            _forget_after(run, fields.get("Resume_step"))
            self._begun.discard(name)
        run.fields.update(fields)
        self.runs.append(run)

    def _find(self, name: str) -> Run | None:
        return next((run for run in reversed(self.runs) if run.id == name), None)

    def _add_named(self, name: str, tag: str, fields: dict) -> None:
        run = self._find(name)
        if run is None:  # its [RUN] line is in another file, or lost
            self.runs.append(run := Run(name))
        run.add(tag, fields)
        if tag == "TRAIN":
            if self._writer not in (name, None) and name in self._begun:
                self._together[tuple(sorted((name, str(self._writer))))] = None
            self._writer = name
            self._begun.add(name)

    def _sort_unnamed(self) -> None:
        events, self._unnamed = self._unnamed, []
        if self.runs and self.runs[-1].fields:
            self._give_to_runs(events)
        elif interleaved.are_interleaved(events):
            whose = interleaved.owners(events, (), may_begin=True) or []
            self._give(events, whose, [Run(f"run {number + 1}") for number in range(max(whose) + 1)])
        else:
            for tag, fields in events:
                if not self.runs or self._starts_over(tag, fields):
                    self.runs.append(Run(f"run {len(self.runs) + 1}"))
                self.runs[-1].add(tag, fields)

    def _give_to_runs(self, events: list[Event]) -> None:
        """Give events that followed a [RUN] line to its run, or also to earlier ones that wrote on."""
        if not interleaved.rises(events):
            open_runs = [run for run in self.runs[:-1] if "DONE" not in run.events][-_MOST_AT_ONCE:]
            for count in range(1, len(open_runs) + 1):
                # In the order in which they began: the first line is more likely of the run that began first.
                runs = [*open_runs[-count:], self.runs[-1]]
                whose = interleaved.owners(events, [_latest_step(run) for run in runs])
                if whose:
                    self._give(events, whose, runs)
                    return
        for tag, fields in events:
            self.runs[-1].add(tag, fields)

    def _give(self, events: list[Event], whose: list[int], runs: list[Run]) -> None:
        for number, (tag, fields) in zip(whose, events, strict=True):
            runs[number].add(tag, fields)
        self.runs += [run for run in runs if run not in self.runs]
        self._together[tuple(sorted(runs[number].id for number in set(whose)))] = None
        self._is_guessed = True

    def _starts_over(self, tag: str, fields: dict) -> bool:
        run = self.runs[-1]
        return not run.fields and tag in run.events and _less(fields, run.events[tag][-1], "Step")


def _is_prefix(before: list[str]) -> bool:
    """Tell whether the text before the time stamp is a prefix of each line, such as torchrun's `[default0]:`.

    The rest of a line that a kill has cut begins with a time stamp, or is part of one.
    """
    text = before[0].strip()
    return len(before) == 1 and len(text) <= 80 and "=" not in text and not _PART_OF_STAMP.fullmatch(text)


def _latest_step(run: Run) -> float | None:
    steps = run.series("TRAIN", "Step")[0]
    resumed = run.fields.get("Resume_step")
    return steps[-1] if steps else resumed if is_number(resumed) else None


def _forget_after(run: Run, step: float | None) -> None:
    """Drop the events of `run` after `step`, or all if `step` is None; events without a step stay."""
    last = {"Step": step if is_number(step) else -math.inf}
    for tag, events in run.events.items():
        run.events[tag] = [event for event in events if not _less(last, event, "Step")]


def _less(a: dict, b: dict, key: str) -> bool:
    """Tell whether both events have a number under `key`, and the one of `a` is smaller."""
    return is_number(a.get(key)) and is_number(b.get(key)) and a[key] < b[key]


def _fields(text: str) -> dict:
    """Return the `key=value` pairs of `text`; other text between them is ignored."""
    return {
        key: int(whole) if whole else float(real) if real else _string(quoted, bare)
        for key, whole, real, quoted, bare in _FIELD.findall(text)
    }


def _string(quoted: str, bare: str) -> str | bool | None:
    if not quoted:
        return _WORDS.get(bare, bare)
    try:
        return json.loads(quoted)
    except ValueError:  # quotes of another program, which are not valid JSON
        return quoted
