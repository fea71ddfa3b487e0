"""Files of flags in TOML: `--config FILE` reads one, `--save-config FILE` writes one.

    [training]
    batch-size = 64                  # as on the command line, with or without dashes
    augment = ["shift", "rotate"]
    amp = true

The names of the tables are free, and there need not be any: a flag means the same in each of them.
"""

import argparse
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.cli import suggestions
from lib.cli.scope import Flag, Scope, spelled
from lib.runtime.errors import UserError
from lib.runtime.files import write_atomically
from lib.runtime.spelling import as_typed

_NOT_IN_FILES = ("help", "config", "save_config")


def read(path: str, options: Mapping[str, argparse.Action]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Read flags from a TOML file.

    Args:
        path: the file.
        options: the parser's actions by spelling, e.g. `--batch-size`.

    Returns:
        the command-line arguments that say the same, by name of the flag; and the switches that the file sets
        to false, which no argument can say.

    Raises:
        UserError: there is no such file, it is no TOML, or an entry is no flag, or no value of
            its flag.
    """
    arguments: dict[str, list[str]] = {}
    switched_off: dict[str, Any] = {}
    for key, value in _entries(path).items():
        action = options.get(spelled(key))
        if action is None or action.dest in _NOT_IN_FILES:
            near = suggestions.meant(spelled(key), options)
            hint = f" (did you mean {near.removeprefix('--')}?)" if near else ""
            raise UserError(f"{path}: {key} is no flag of this script{hint}")
        if action.dest in arguments or action.dest in switched_off:
            raise UserError(f"{path} sets {key} twice")
        words = _as_arguments(path, key, value, action)
        if words is None:
            switched_off[action.dest] = False
        else:
            arguments[action.dest] = words
    return arguments, switched_off


def _entries(path: str) -> dict[str, Any]:
    """Return the entries of a TOML file and of its tables."""
    try:
        with Path(path).open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no TOML file: {error}") from None
    entries: dict[str, Any] = {}
    for name, value in content.items():
        for key, each in value.items() if isinstance(value, dict) else [(name, value)]:
            if key in entries:
                raise UserError(f"{path} sets {key} twice")
            entries[key] = each
    return entries


def _as_arguments(path: str, key: str, value: Any, action: argparse.Action) -> list[str] | None:
    """Return the arguments that set a flag to `value`; None for a switch that is to be off."""
    flag = spelled(key)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{path}: {key} is true or false, not {value!r}")
        negated = f"--no-{flag.removeprefix('--')}"
        if value or negated in action.option_strings:
            return [flag if value else negated]
        return None
    items = value if isinstance(value, list) else [value]
    plain = [tuple(each) if isinstance(each, list) else each for each in items]
    if any(isinstance(each, bool | dict) for each in plain):
        raise UserError(f"{path}: {key} is a number, a text or a list, not {value!r}")
    if action.nargs in ("+", "*"):
        return [flag, *map(str, plain)]
    return [f"{flag}={as_typed(tuple(plain))}"]


def save(path: str, values: Mapping[str, Any], flags: Mapping[str, Flag], typed: Mapping[str, Any]) -> None:
    """Write a TOML file from which `--config` makes the same run.

    The file has all flags of the network, the data and the training, and those of a mode or of the machine
    that were typed. Flags without a value are left out.

    Args:
        path: the file.
        values: the settled value of every flag, by name.
        flags: the flags' declarations, by name.
        typed: the flags that the user gave.

    Raises:
        RunFailed: the file cannot be written.
    """
    lines = []
    for scope in Scope:
        named = {
            name: values[name]
            for name, flag in flags.items()
            if flag.scope is scope
            and name not in _NOT_IN_FILES
            and values[name] is not None
            and (name in typed or scope not in (Scope.MODE, Scope.MACHINE))
        }
        if named:
            lines += [
                f"[{scope.value}]",
                *(f"{_key(name)} = {_toml(value)}" for name, value in named.items()),
            ]
            lines.append("")
    write_atomically(Path(path), "\n".join(lines).encode())


def _key(name: str) -> str:
    return spelled(name).removeprefix("--")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # The escapes of JSON are escapes of TOML, which also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert math.isfinite(value)
    return repr(value)
