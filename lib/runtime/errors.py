"""The exceptions that end a run, which `cli.run` turns into one line and an exit status; and warnings."""

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lib.runtime.spelling import printable


class UserError(Exception):
    """The user's input is wrong. The message says what was found and what would be right (exit 2)."""


class OtherTaskError(UserError):
    """A checkpoint was trained for another task than the one that is wanted.

    Attributes:
        path: its file.
        content: what is in it.
    """

    def __init__(self, path: Path, content: dict[str, Any], wanted: str):
        super().__init__(f"{path} was trained for {content['task']}, not for {wanted}")
        self.path = path
        self.content = content


class RunFailed(Exception):
    """The input is right, but the run cannot go on: a full disk, a non-finite loss (exit 1)."""


class Interrupted(Exception):
    """A signal stopped the run after its state was saved (exit 128 + signal number)."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


_user_files: set[str] = set()


def expect_errors_in(path: Path) -> None:
    """Say that a file holds code of the user's, whose exceptions are to be told in one line."""
    _user_files.add(str(path.resolve()))


def told_of_user_code(error: BaseException, what: str = "") -> str:
    """Return an exception of the user's code as one line.

    Args:
        error: the exception.
        what: what raises it; by default, the user's file that it passed through, and the line is empty if it
            passed through none.
    """
    calls = traceback.extract_tb(error.__traceback__)
    own = [each for each in calls if os.path.realpath(each.filename) in _user_files]
    what = what or (own[-1].filename if own else "")
    if not what:
        return ""
    where = f" in line {own[-1].lineno}" if own else ""
    text = " ".join(str(error).split())[:300]
    return f"{what} raises {type(error).__name__}{where}: {text}"


def warn(message: str) -> None:
    """Print a warning to standard error; the run goes on."""
    say(f"warning: {message}")


def say(line: str) -> None:
    """Print a text as one line to standard error, its control characters escaped.

    If it cannot be written, it is dropped and the run goes on.
    """
    with contextlib.suppress(OSError):
        print(printable(" ".join(line.split())), file=sys.stderr)
