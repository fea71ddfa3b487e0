"""The spelling of flag values on the command line."""

from typing import Any


def as_typed(value: Any) -> Any:
    """Return a flag's value as it is typed: a tuple with commas, a pair inside a tuple with colons."""
    if not isinstance(value, tuple):
        return value
    return ",".join(":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)
