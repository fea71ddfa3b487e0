"""Settings: small frozen dataclasses that functions take instead of all the flags of a command line."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Self


class Settings:
    """Base class of frozen dataclasses whose fields are flags of the same names.

    A dataclass names the flags that a function reads, with their types, so that a reader sees them at a
    glance, a type checker knows them, and a test can make them without a command line.
    """

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Return the settings among `flags`, which may hold other flags, too.

        A flag that a script does not have leaves the default of its field.

        Raises:
            KeyError: a flag is missing whose field has no default: a mistake in the script, not of its user.
        """
        assert is_dataclass(cls)
        needed = [
            each.name
            for each in fields(cls)
            if each.name in flags or (each.default is MISSING and each.default_factory is MISSING)
        ]
        return cls(**{name: flags[name] for name in needed})
