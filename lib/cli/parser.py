"""Command lines: parsing, types of flags, and the one-line ending.

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
    """An `ArgumentParser` whose mistakes are one line, and whose `--help` shows every default."""

    def __init__(self, **options):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")

    def parse_typed(self, argv: Sequence[str] | None) -> tuple[dict, dict]:
        """Return `(typed, defaults)`: the flags the user typed, and the default of every flag.

        Keeping the two apart lets a checkpoint or a model's recipe stand between them.
        """
        defaults = vars(self.parse_args([]))
        namespace = argparse.Namespace(**dict.fromkeys(defaults, _UNSET))
        self.parse_args(argv, namespace)
        typed = {name: value for name, value in vars(namespace).items() if value is not _UNSET}
        return typed, defaults


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each flag (not where there is none to show), descriptions as they are written."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == ():
            return action.help
        return super()._get_help_string(action)


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Call `main(argv)` and leave with the exit status its ending deserves.

    0 done, 1 the run failed, 2 the user's input was wrong, 130 Ctrl-C, 143 SIGTERM, 141 reader gone.
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
        # The reader of our standard output is gone (`| head`): nothing is left to tell it.
        streams.abandon(sys.stdout)
        _leave(141)
    except OSError as error:
        # Files are read and written by what knows them. What is left is a path that cannot be one, e.g. too
        # long, which the error names, and standard output.
        if error.filename is not None:
            _leave(2, f"error: {error.filename}: {error.strerror}")
        streams.abandon(sys.stdout)
        _leave(1, f"error: cannot write to standard output: {error.strerror or error}")


def _leave(status: int, line: str = "") -> None:
    # Under torchrun every rank meets the same mistake: one of them says so.
    if line and int(os.environ.get("RANK", 0)) == 0:
        say(" ".join(line.split()))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # One of gloo's threads may still be letting go of a tensor. If the interpreter is shutting down by
        # then, that aborts the process (pytorch/pytorch#179291): ranks leave without shutting it down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A flag type: an integer in [minimum, maximum]."""
    return _number(int, "an integer", minimum, maximum)


def number(minimum: float, maximum: float | None = None, *, above: bool = False) -> Callable[[str], float]:
    """A flag type: a finite number in [minimum, maximum], or in (minimum, maximum] with `above`."""
    return _number(float, "a number", minimum, maximum, above)


def _number(kind, noun, minimum, maximum, above=False):
    bounds = f"{'above' if above else 'of at least'} {minimum}"
    if maximum is not None:
        bounds += f" and at most {maximum}"

    def parse(text: str):
        try:
            value = kind(text)
            float(value)
        except (ValueError, OverflowError):  # no number, or an integer that no float is as large as
            value = math.nan
        too_small = value <= minimum if above else value < minimum
        if not math.isfinite(value) or too_small or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {bounds}")
        return value

    return parse


def words(text: str) -> str:
    """A flag type: a text that is not empty, as that of a shell's variable is which was never set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def names_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """A flag type: a comma-separated list of some of `choices`; empty or `none` for none of them."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name and name != "none")
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return names

    return parse
