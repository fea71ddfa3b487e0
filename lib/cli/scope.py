"""The scope of a flag: what it belongs to, and hence where its value is kept and when it may change."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Scope(Enum):
    """What a flag belongs to."""

    NETWORK = "network"
    """Part of what the network is. Checkpoints keep it, and their value is binding."""

    DATA = "data"
    """Chooses the examples. Checkpoints keep it; a resumed run refuses another value."""

    TRAINING = "training"
    """Part of how the network is trained. Checkpoints keep it; a resumed run may change it, unless fixed."""

    MODE = "mode"
    """Says what this command does, or how, e.g. which pictures it draws. Never kept."""

    MACHINE = "machine"
    """Says where this command runs: device, threads, folders. Never kept."""


@dataclass(frozen=True)
class Flag:
    """A declared flag.

    Attributes:
        name: name of its value, e.g. `batch_size` of `--batch-size`.
        scope: what it belongs to.
        only_with: name of the flag without which it is refused; empty if there is none.
        not_with: name of a flag with which it is refused; empty if there is none.
        fixed: a resumed run refuses another value.
        is_path: a path, which may differ between machines: never fixed.
        kept_for_resume: kept in checkpoints for `--resume` alone, which needs it to be exact.
        accepts: tells whether a value, e.g. that of a checkpoint, is one that could be typed.
    """

    name: str
    scope: Scope
    only_with: str = ""
    not_with: str = ""
    fixed: bool = False
    is_path: bool = False
    kept_for_resume: bool = False
    accepts: Callable[[Any], bool] = lambda _value: True

    @property
    def is_kept(self) -> bool:
        """Whether checkpoints keep its value."""
        return self.scope in (Scope.NETWORK, Scope.DATA, Scope.TRAINING) or self.kept_for_resume

    @property
    def is_binding(self) -> bool:
        """Whether a resumed run refuses a value other than its checkpoint's."""
        if self.scope is Scope.DATA:
            return not self.is_path
        return self.fixed or self.scope is Scope.NETWORK


def spelled(name: str) -> str:
    """Return the flag as it is typed: `--batch-size` of `batch_size`."""
    return f"--{name.replace('_', '-')}"


def is_unset(value: Any) -> bool:
    """Return whether a flag's value says nothing: None, False, or an empty list."""
    return value is None or value is False or value in ((), [])
