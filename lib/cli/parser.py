"""Command lines: the parser, types of flags, and exit statuses with one-line error messages.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence

from lib.runtime import streams, threads
from lib.runtime.errors import Interrupted, RunFailed, UserError, say

OPTIMIZERS = ("adamw", "adam", "sgd", "muon")

_UNSET = object()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports errors in one line and shows every default in `--help`."""

    def __init__(self, **options):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")

    def parse_typed(self, argv: Sequence[str] | None) -> tuple[dict, dict]:
        """Return `(typed, defaults)`: the flags that the user typed, and the default of every flag.

        The two are separate so that values of a checkpoint or of a model's recipe can take precedence over
        the defaults, but not over typed flags.
        """
        defaults = vars(self.parse_args([]))
        namespace = argparse.Namespace(**dict.fromkeys(defaults, _UNSET))
        self.parse_args(argv, namespace)
        typed = {name: value for name, value in vars(namespace).items() if value is not _UNSET}
        return typed, defaults


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formatter that shows defaults, except None, False and (), and keeps line breaks of descriptions."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == ():
            return action.help
        return super()._get_help_string(action)


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Call `main(argv)` and exit with a status that says how it ended.

    Statuses: 0 success, 1 the run failed, 2 the user's input was wrong, 130 Ctrl-C, 143 SIGTERM, 141 the
    reader of standard output is gone.
    """
    streams.open_missing()
    threads.share_cores_with_others()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
        _leave(0)
    except UserError as error:
        _leave(2, f"error: {error}")
    except RunFailed as error:
        _leave(1, f"error: {error}")
    except Interrupted as error:
        _leave(128 + error.signal_number, str(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    except BrokenPipeError:
        # The reader of standard output is gone (as with `| head`), so no message can reach it.
        streams.abandon(sys.stdout)
        _leave(141)
    except OSError as error:
        # Code that reads and writes files turns their errors into UserError or RunFailed. Two kinds are left:
        # invalid paths (e.g. too long), which the error names, and errors of standard output.
        if error.filename is not None:
            _leave(2, f"error: {error.filename}: {error.strerror}")
        streams.abandon(sys.stdout)
        _leave(1, f"error: cannot write to standard output: {error.strerror or error}")


def _leave(status: int, line: str = "") -> None:
    # Under torchrun every rank meets the same error; only rank 0 reports it.
    if line and int(os.environ.get("RANK", 0)) == 0:
        say(" ".join(line.split()))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # A thread of gloo may still be releasing a tensor. If the interpreter is already shutting down then,
        # the process aborts (pytorch/pytorch#179291). So ranks exit without shutting the interpreter down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return a flag type: an integer in [minimum, maximum]."""
    return _number(int, "an integer", minimum, maximum)


def number(minimum: float, maximum: float | None = None, *, above: bool = False) -> Callable[[str], float]:
    """Return a flag type: a finite number in [minimum, maximum], or in (minimum, maximum] with `above`."""
    return _number(float, "a number", minimum, maximum, above)


def _number(kind, noun, minimum, maximum, above=False):
    bounds = f"{'above' if above else 'of at least'} {minimum}"
    if maximum is not None:
        bounds += f" and at most {maximum}"

    def parse(text: str):
        try:
            value = kind(text)
            float(value)
        except (ValueError, OverflowError):  # not a number, or an integer too large for a float
            value = math.nan
        too_small = value <= minimum if above else value < minimum
        if not math.isfinite(value) or too_small or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {bounds}")
        return value

    return parse


def words(text: str) -> str:
    """Flag type: a non-empty text (an unset shell variable arrives as an empty one)."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def names_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """Return a flag type: a comma-separated list of some of `choices`; empty or `none` for none."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name and name != "none")
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return names

    return parse
