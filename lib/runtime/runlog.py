"""The log line: written here, parsed here, nowhere else.

One event a line, `YYYY-MM-DD HH:MM:SS,mmm - NAME - LEVEL - [TAG] key=value key=value`. The keys that
training writes, and that the curves are drawn from:

    [RUN] id=… name=… dataset=… model=… seed=…          a run begins; with Resume_step=N it goes on
    [PLAN] Steps_per_epoch=469
    [TRAIN] Epoch=0 Step=250 Training_loss=0.41231 Learning_rate=0.001 Examples_per_second=…
    [VALID] Epoch=0 Step=250 Valid_loss=0.3811 Valid_accuracy=0.8831
    [EVAL] …, [TEST] …, [MODEL] …                       numbers, or free text such as a table
"""

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TextIO

from lib.runtime import streams
from lib.runtime.errors import UserError, warn


class RunLog:
    """Writes events as log lines, flushed one by one, and mirrors their numbers to TensorBoard.

    A line that cannot be written (the reader of a pipe is gone, the disk is full) never ends the run: one
    warning says so, and the run goes on without its log.

    Args:
        name: who writes, the NAME of every line.
        stream: where the lines go; None for whatever `sys.stdout` is when a line is written.
        tensorboard: folder for TensorBoard's files; None for none.
        enabled: False writes nothing at all (every rank but the first).
    """

    def __init__(
        self,
        name: str,
        *,
        stream: TextIO | None = None,
        tensorboard: str | Path | None = None,
        enabled: bool = True,
    ):
        self._name = name
        self._stream = stream
        self._folder = tensorboard
        self._enabled = enabled
        self._is_lost = False
        self._writer = None

    def event(self, tag: str, /, **fields) -> None:
        """Write `[TAG] key=value …`: floats with six significant digits, strings quoted where needed.

        Where there is a field `Step`, TensorBoard gets the other numbers as scalars `TAG/key` at it.

        Raises:
            UserError: TensorBoard is missing, or its folder cannot be written.
        """
        if not self._enabled:
            return
        fields = {key: _plain(value) for key, value in fields.items()}
        self._write(tag, " ".join(f"{key}={_spell(value)}" for key, value in fields.items()))
        if self._folder is not None:
            self._mirror(tag, fields)

    def text(self, tag: str, text: str) -> None:
        """Write `[TAG] text`, one log line for each line of `text`. Raises as `event` does."""
        if self._enabled:
            for line in text.splitlines():
                self._write(tag, line)

    def close(self) -> None:
        """Finish TensorBoard's file; the stream stays open, for it is not ours."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
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

    def _mirror(self, tag: str, fields: dict) -> None:
        if self._writer is None:
            self._writer = _summary_writer(self._folder, fields.get("Resume_step"))
        if "Step" not in fields:
            return
        for key, value in fields.items():
            if key != "Step" and is_number(value):
                self._writer.add_scalar(f"{tag}/{key}", value, fields["Step"])


def _summary_writer(folder: str | Path, resume_step: int | None):
    """Open TensorBoard's writer; on resume it hides what a killed run wrote after `resume_step`."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(folder, purge_step=None if resume_step is None else resume_step + 1)
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    except OSError as error:
        raise UserError(f"cannot write to the TensorBoard folder {folder}: {error.strerror}") from None


def is_number(value) -> bool:
    """Tell whether a field's value is a number (nan and inf are, True is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value):
    """Return a field's value as a Python number, word or string; what is none of them as its `str`."""
    if hasattr(value, "item"):  # a NumPy scalar, a one-element tensor
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _spell(value) -> str:
    """Return `value` as it stands behind `key=`, such that `_fields` gives it back."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return str(value)
    if value.isprintable() and '"' not in value and _fields(f"key={value}") == {"key": value}:
        return value
    # Quoted: it has blanks, or unquoted it would be read as a number or a word such as None. Letters of
    # any script stay legible; only what cannot be printed (a lone surrogate, a newline) is escaped.
    return json.dumps(value, ensure_ascii=not value.isprintable())


@dataclass
class Run:
    """One run of a log.

    Attributes:
        id: what [RUN] calls it; `run 1`, `run 2`, … where the log has no [RUN] lines.
        fields: the fields of its [RUN] line; empty where there is none.
        events: the events of each tag, in the order of the log, each a dict of fields.
    """

    id: str
    fields: dict = field(default_factory=dict)
    events: dict[str, list[dict]] = field(default_factory=dict)

    def series(self, tag: str, key: str, x: str = "Step") -> tuple[list[float], list[float]]:
        """Return `(xs, values)` of the events of `tag` where both `x` and `key` are numbers.

        The values may be nan or infinite; the xs are finite.
        """
        pairs = [
            (event[x], event[key])
            for event in self.events.get(tag, [])
            if is_number(event.get(key)) and is_number(event.get(x)) and math.isfinite(event[x])
        ]
        return [x for x, _ in pairs], [value for _, value in pairs]

    def keys(self, tag: str) -> list[str]:
        """Return the names of the fields that hold a number in any event of `tag`, first seen first."""
        events = self.events.get(tag, [])
        return list(dict.fromkeys(key for event in events for key in event if is_number(event[key])))

    def steps_per_epoch(self) -> float | None:
        """Return the steps of an epoch; None where no event tells its epoch.

        What [PLAN] says under `Steps_per_epoch`, or the fewest with which every step lies in its epoch.
        """
        stated = [event.get("Steps_per_epoch") for event in self.events.get("PLAN", [])]
        if stated and is_number(stated[-1]) and stated[-1] > 0:
            return stated[-1]
        pairs = [pair for tag in self.events for pair in zip(*self.series(tag, "Epoch"), strict=True)]
        # Logs from elsewhere may count their epochs from one.
        first = 1 if not self.fields and all(epoch >= 1 for _, epoch in pairs) else 0
        return max((step / (epoch + 1 - first) for step, epoch in pairs if epoch >= first), default=None)


@dataclass(frozen=True)
class ParsedLog:
    """The runs of a log, the newest last, and how many lines could not be read (blank ones aside)."""

    runs: list[Run]
    skipped: int


def parse(lines: Iterable[str | bytes]) -> ParsedLog:
    """Read log lines as a file yields them, each with its newline. No input is an error.

    A line without its newline is still being written, or was cut short by a kill: it is skipped, for
    the `0.4` it ends in may be the beginning of `0.41231`.

    A [RUN] line begins a run. With the id of an earlier run it goes on with that one: the events after
    `Resume_step` were lost in a kill, come again, and are dropped; without a `Resume_step`, all are.
    Where there are no [RUN] lines, a step that falls begins a run.
    """
    reader = _Reader()
    for line in lines:
        reader.read(line.decode("utf-8", "replace") if isinstance(line, bytes) else line)
    return ParsedLog(reader.runs, reader.skipped)


_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - ", re.ASCII)
_TAGGED = re.compile(r"(?:.*? - )?\[(\w+)\](?:\s|$)")
# Possessive, and begun only behind a blank: linear in the length of any line. More than 300 digits are
# read as a float, infinite: every int here can become a float.
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
    """Sorts the lines of a log into runs."""

    def __init__(self):
        self.runs: list[Run] = []
        self.skipped = 0

    def read(self, line: str) -> None:
        if not line.strip():
            return
        # A kill can cut a line anywhere; the next run then writes on behind it, on the same line.
        *cut_off, rest = _STAMP.split(line)
        tagged = _TAGGED.match(rest)
        self.skipped += any(map(str.strip, cut_off))
        if not tagged or not line.endswith("\n"):
            self.skipped += 1
        elif fields := _fields(rest[tagged.end() :]):
            self._take(tagged[1], fields)

    def _take(self, tag: str, fields: dict) -> None:
        if tag != "RUN":
            self._add(tag, fields)
        elif "id" in fields:  # without one, it is a remark about the run
            self._begin(fields)

    def _begin(self, fields: dict) -> None:
        name = str(fields["id"])
        run = next((run for run in self.runs if run.id == name), None)
        if run is None:
            run = Run(name)
        else:
            self.runs.remove(run)
            _forget_after(run, fields.get("Resume_step"))
        run.fields.update(fields)
        self.runs.append(run)

    def _add(self, tag: str, fields: dict) -> None:
        if "Total_step" in fields:  # as older logs say in [VALID]
            fields["Step"] = fields.pop("Total_step")
        if not self.runs or self._starts_over(tag, fields):
            self.runs.append(Run(f"run {len(self.runs) + 1}"))
        self.runs[-1].events.setdefault(tag, []).append(fields)

    def _starts_over(self, tag: str, fields: dict) -> bool:
        run = self.runs[-1]
        if run.fields or tag not in run.events:
            return False
        return _less(fields, run.events[tag][-1], "Step")


def _forget_after(run: Run, step: float | None) -> None:
    """Drop the events of `run` after `step`, all with a step for None; those without one stay."""
    last = {"Step": step if is_number(step) else -math.inf}
    for tag, events in run.events.items():
        run.events[tag] = [event for event in events if not _less(last, event, "Step")]


def _less(a: dict, b: dict, key: str) -> bool:
    """Tell whether both events have a number under `key` and that of `a` is the smaller."""
    return is_number(a.get(key)) and is_number(b.get(key)) and a[key] < b[key]


def _fields(text: str) -> dict:
    """Return the `key=value` pairs of `text`; what stands between them is passed over."""
    return {
        key: int(whole) if whole else float(real) if real else _string(quoted, bare)
        for key, whole, real, quoted, bare in _FIELD.findall(text)
    }


def _string(quoted: str, bare: str) -> str | bool | None:
    if not quoted:
        return _WORDS.get(bare, bare)
    try:
        return json.loads(quoted)
    except ValueError:  # not written here: quotes of someone else's making
        return quoted
