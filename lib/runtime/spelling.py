"""How values are spelled as people type them."""

from typing import Any


def as_typed(value: Any) -> Any:
    """Return a flag's value as it would be typed: with commas between several, colons within a pair."""
    if not isinstance(value, tuple):
        return value
    return ",".join(":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)
