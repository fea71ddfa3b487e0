"""The ways a run can end early; `cli.run` turns each into one line and an exit status. And warnings."""

import contextlib
import sys


class UserError(Exception):
    """The user's input was wrong. The message says what was found and what would be right (exit 2)."""


class RunFailed(Exception):
    """The input was right, but the run could not go on: a full disk, a non-finite loss (exit 1)."""


class Interrupted(Exception):
    """A signal stopped the run after its state was saved (exit 128 + signal number)."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def warn(message: str) -> None:
    """Tell the user, on standard error, of something that does not end the run."""
    say(f"warning: {message}")


def say(line: str) -> None:
    """Print a line to standard error; a standard error that cannot be written to is no reason to stop."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)
