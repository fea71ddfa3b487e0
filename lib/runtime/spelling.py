"""The spelling of texts: flag values as typed, outside texts without control characters, whole numbers."""

import re
import unicodedata
from typing import Any

# Categories of Unicode: control characters, surrogates (bytes of a file name that are no UTF-8), characters
# that turn the direction of writing and the like, line and paragraph separators.
_HARMFUL = ("Cc", "Cs", "Cf", "Zl", "Zp")
# Of the category Cf, but parts of words and emojis: the zero-width non-joiner and joiner.
_JOINERS = "\u200c\u200d"
_PLAIN = re.compile(r"[ -~]*")


def as_typed(value: Any) -> Any:
    """Return a flag's value as it is typed: a tuple with commas, a pair inside a tuple with colons."""
    if not isinstance(value, tuple):
        return value
    return ",".join(":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)


def printable(text: object) -> str:
    r"""Return a text from outside (a file name, a class name, an error message) as it may be printed.

    Control characters, which could colour, move or erase what a terminal shows, are escaped: `\x1b`, `\n`,
    `\u202e`. All letters stay as they are.
    """
    readable = str(text)
    if _PLAIN.fullmatch(readable):
        return readable
    return "".join(map(_escaped, readable))


def whole_number(text: str) -> int | None:
    """Return the number that a text of digits spells, at most 10¹⁸; None if it is no such text.

    `str.isdecimal` accepts the digits of all scripts, and `int` refuses thousands of digits.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) <= 18 else 10**18


def readable(value: float, how: str = ".3g") -> str:
    """Return a number for people to read: formatted, with a true minus sign, and zero without one."""
    text = format(value, how).replace("-", "−")
    return text.removeprefix("−") if text.strip("−0.") == "" else text


def cell(text: object) -> str:
    """Return a text as one cell of a table whose cells end at tabs: in one line, and printable."""
    return printable(" ".join(str(text).split()))


def _escaped(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _HARMFUL:
        return character
    return character.encode("unicode_escape").decode()
