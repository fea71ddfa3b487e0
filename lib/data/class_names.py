"""Lists of class names that users give: on the command line or in a file."""

import json
import re
from pathlib import Path
from typing import Any

from lib.runtime.errors import UserError
from lib.runtime.files import existing_file
from lib.runtime.spelling import whole_number

# A number and a name, as in `207,golden retriever`.
_NUMBERED = re.compile(r"\s*(\d+)\s*[,;:\t]\s*(.+)")


def read(given: str) -> tuple[str, ...]:
    """Return the class names that `given` says.

    Args:
        given: names separated by commas, or a file: of one name in each line; of a number and a name in each
            line, `207,golden retriever`; or JSON, a list of names or an object from numbers to names (or to
            lists that end with the name, as in Keras' `imagenet_class_index.json`).

    Raises:
        UserError: the file cannot be read, or does not name every class once.
    """
    if not Path(given).is_file() and "," in given:
        return _checked([name.strip() for name in given.split(",")], "--classes")
    path = existing_file(given)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given} cannot be read as a list of class names: {error}") from None
    if text.lstrip()[:1] in ("[", "{"):
        return _checked(_from_json(text, given), given)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return _checked(_in_order({match[1]: match[2] for match in numbered if match}, given), given)
    return _checked(lines, given)


def _from_json(text: str, source: str) -> list[str]:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is no JSON: {error}") from None
    if isinstance(content, dict):
        content = _in_order(content, source)
    names = [each[-1] if isinstance(each, list) and each else each for each in content]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{source} names classes by something else than texts")
    return names


def _in_order(numbered: dict[str, Any], source: str) -> list[Any]:
    if {*map(whole_number, numbered)} != {*range(len(numbered))}:
        raise UserError(f"{source} does not number its classes from 0 to {max(len(numbered) - 1, 0)}")
    return [value for _, value in sorted(numbered.items(), key=lambda pair: int(pair[0]))]


def _checked(names: list[str], source: str) -> tuple[str, ...]:
    if len(names) < 2 or not all(name.strip() for name in names):
        raise UserError(f"{source} names {len(names)} classes, and needs two or more, none of them empty")
    return tuple(names)
