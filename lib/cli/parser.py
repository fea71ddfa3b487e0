"""The parser of command lines, whose flags are declared once, each with its scope.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.cli import suggestions
from lib.cli.scope import Flag, Scope, is_unset, spelled
from lib.cli.types import path
from lib.runtime.errors import UserError, warn
from lib.runtime.spelling import as_typed

_UNSET = object()
# Flags with these names for their values are paths, and need not say so by their type.
_PATHS = ("FILE", "FILE.npz", "DIR", "CKPT", "IMAGE", "WHICH")


@dataclass(frozen=True)
class CommandLine:
    """What the user asked for, apart from the defaults.

    The two are separate so that values of a checkpoint or of a model's recipe can take precedence over the
    defaults, but not over typed flags.

    Attributes:
        typed: values of the flags that were typed or that `--config` sets, by name.
        defaults: the default of every flag, by name.
        flags: every flag's declaration, by name.
        config: names of the flags in `typed` that come from `--config`.
    """

    typed: dict[str, Any]
    defaults: dict[str, Any]
    flags: Mapping[str, Flag]
    config: Collection[str] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The value of every flag: the typed one, or else the default."""
        return self.defaults | self.typed

    def check_company(self) -> None:
        """Raise a UserError if a flag was given without the flag that it needs, or with one that it excludes.

        A value that says nothing, e.g. false in a configuration, counts as not given.
        """
        values = self.values
        given = [self.flags[name] for name, value in self.typed.items() if not is_unset(value)]
        for flag in given:
            if flag.only_with and is_unset(values[flag.only_with]):
                raise UserError(f"{spelled(flag.name)} goes with {spelled(flag.only_with)} alone")
        for flag in given:
            if flag.not_with and not is_unset(values[flag.not_with]):
                raise UserError(
                    f"{spelled(flag.name)} does not go with {spelled(flag.not_with)}: give one of them"
                )


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose flags have scopes.

    It reports errors in one line, shows every default in `--help`, and reads flags from `--config`, too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)
        self._declared: dict[str, Flag] = {}
        self._renamed: dict[str, str] = {}

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")

    def group(self, title: str, scope: Scope, *, only_with: str = "") -> "Group":
        """Add a group of flags that share a scope, e.g. those of one mode, and return it.

        Args:
            title: heading of the group in `--help`.
            scope: scope of its flags.
            only_with: name of the flag without which they are refused.
        """
        return Group(self, self.add_argument_group(title), scope, only_with)

    def declare(self, flag: Flag) -> None:
        """Note the declaration of a flag; `Group.add` calls it."""
        self._declared[flag.name] = flag

    def rename(self, old: str, new: str) -> None:
        """Accept the old spelling of a flag, e.g. `--pool` for `--pooling`; its use is said once."""
        self._renamed[old] = new

    def parse(self, argv: Sequence[str] | None) -> CommandLine:
        """Return the flags of the command line and of the file that `--config` names.

        Typed flags take precedence over those of the file.

        Raises:
            UserError: a flag is unknown or has a wrong value.
        """
        argv = self._respelled(sys.argv[1:] if argv is None else argv)
        defaults = {each.dest: each.default for each in self._actions if each.default != argparse.SUPPRESS}
        typed = self._given(argv, defaults)
        in_file: dict[str, Any] = {}
        if typed.get("config"):
            from lib.cli import config

            arguments, switched_off = config.read(typed["config"], self._option_string_actions)
            try:
                in_file = self._given(_joined(arguments), defaults) | switched_off
            except UserError as error:
                raise UserError(f"{typed['config']}: {error}") from None
            # Once more together, so that flags which exclude each other are found.
            self._given([*_joined(arguments, without=typed), *argv], defaults)
        return CommandLine(in_file | typed, defaults, self._declared, frozenset(in_file) - frozenset(typed))

    def _given(self, argv: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
        namespace = argparse.Namespace(**dict.fromkeys(defaults, _UNSET))
        _, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            self.error(suggestions.unknown(unknown, self._option_string_actions))
        return {name: value for name, value in vars(namespace).items() if value is not _UNSET}

    def _respelled(self, argv: Sequence[str]) -> list[str]:
        """Replace old spellings of flags, and say so on standard error."""
        arguments, used = list(argv), set()
        for place, argument in enumerate(arguments):
            name, equals, value = argument.partition("=")
            if name in self._renamed:
                used.add(name)
                arguments[place] = f"{self._renamed[name]}{equals}{value}"
        for name in sorted(used):
            warn(f"{name} is now called {self._renamed[name]}; the old name still works")
        return arguments


def _joined(arguments: Mapping[str, Sequence[str]], without: Collection[str] = ()) -> list[str]:
    return [each for name, words in arguments.items() if name not in without for each in words]


class Group:
    """A group of flags that share a scope; `Parser.group` makes it.

    Attributes:
        scope: scope of its flags.
        only_with: name of the flag without which they are refused.
    """

    def __init__(self, parser: Parser, container: Any, scope: Scope, only_with: str = ""):
        self._parser, self._container = parser, container
        self.scope, self.only_with = scope, only_with

    def add(
        self,
        *spellings: str,
        scope: Scope | None = None,
        only_with: str = "",
        not_with: str = "",
        fixed: bool = False,
        is_path: bool = False,
        kept_for_resume: bool = False,
        **options: Any,
    ) -> None:
        """Declare a flag.

        Args:
            spellings: as for `ArgumentParser.add_argument`.
            scope, only_with: of this flag, where they differ from the group's.
            not_with, fixed, is_path, kept_for_resume: see `lib.cli.scope.Flag`.
            options: for `ArgumentParser.add_argument`: type, default, help, …
        """
        if is_path or options.get("metavar") in _PATHS:
            options.setdefault("type", path)
        action = self._container.add_argument(*spellings, **options)
        self._parser.declare(
            Flag(
                action.dest,
                scope or self.scope,
                only_with or self.only_with,
                not_with,
                fixed,
                is_path,
                kept_for_resume,
                functools.partial(_accepts, action),
            )
        )

    def one_of(self) -> "Group":
        """Return a group within this one, of whose flags a user may give one."""
        return Group(self._parser, self._container.add_mutually_exclusive_group(), self.scope, self.only_with)


def _accepts(action: argparse.Action, value: Any) -> bool:
    """Tell whether `value` is one that the flag could have got from a command line."""
    if value is None:
        return action.default is None
    if action.nargs == 0:
        return isinstance(value, bool)
    if action.nargs is not None:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float | str | tuple):
        return False
    kind = action.type or str
    try:
        parsed = kind(str(as_typed(value)))  # type: ignore[operator]
        same = bool(parsed == value)  # a tuple may hold a tensor, which has no truth
    except (argparse.ArgumentTypeError, ValueError, TypeError, RuntimeError):
        return False
    return same and (action.choices is None or parsed in action.choices)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formatter that shows defaults, except None, False and (), and keeps line breaks of descriptions."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == ():
            return action.help
        if isinstance(action.default, tuple | list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)
