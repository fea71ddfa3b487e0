"""Types of flags: functions from the text of a flag to its value, which refuse what is no such value."""

import argparse
import itertools
import math
import os
from collections.abc import Callable

MOST_SIDE = 2**20  # of an image, in pixels


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


def path(text: str) -> str:
    """Flag type: a path; `~` is a home folder, which shells leave as it is in `--data-dir=~/data`."""
    return os.path.expanduser(text)


def nonempty_text(text: str) -> str:
    """Flag type: a non-empty text (an unset shell variable arrives as an empty one)."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def subset_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """Return a flag type: a comma-separated list of some of `choices`; empty or `none` for none."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name and name != "none")
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return names

    return parse


def windows(text: str) -> tuple[tuple[float, float], ...]:
    """Flag type: `SHARE:UNTIL,…`, shares of the side and of the epochs; empty or `none` for none."""
    share = number(0, 1, above=True)
    parts = [part for part in text.split(",") if part and part != "none"]
    numbers = [tuple(map(share, part.split(":"))) for part in parts]
    if any(len(each) != 2 for each in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHARE:UNTIL,… such as 0.75:0.6, or none")
    found = tuple((side, until) for side, until in numbers)
    ends = [until for _, until in found]
    if any(end <= previous for previous, end in itertools.pairwise(ends)):
        raise argparse.ArgumentTypeError(f"{text!r}: each window must last longer than the one before it")
    return found


def integers(text: str) -> tuple[int, ...]:
    """Flag type: positive integers separated by commas; empty for none."""
    return tuple(integer(1)(part) for part in text.split(",") if part)


def names(text: str) -> tuple[str, ...]:
    """Flag type: names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def box(text: str) -> tuple[int, int, int, int]:
    """Flag type: a box of pixels, `Y0,X0,Y1,X1`: rows Y0 to Y1 − 1 and columns X0 to X1 − 1."""
    try:
        top, left, bottom, right = map(int, text.split(","))
    except ValueError:
        top, left, bottom, right = 0, 0, 0, 0
    if not (0 <= top < bottom <= MOST_SIDE and 0 <= left < right <= MOST_SIDE):
        raise argparse.ArgumentTypeError(f"{text!r} is no box Y0,X0,Y1,X1 of pixels such as 8,8,20,20")
    return top, left, bottom, right


def numbers(text: str) -> tuple[float, ...]:
    """Flag type: finite numbers separated by commas, at least one."""
    return tuple(number(-1e9, 1e9)(part) for part in text.split(","))
