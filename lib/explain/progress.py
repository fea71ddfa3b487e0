"""What a long explanation tells those who wait for it, and how they can end it early."""

from collections.abc import Callable
from dataclasses import dataclass


class Stopped(Exception):
    """The computation was told to stop before it knew anything worth keeping."""


def _ignore(_count: int) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """Follows a computation of many forward passes, and may stop it between two of them.

    Attributes:
        expect: is told how many more evaluations are planned.
        advance: is told how many more are done.
        is_stopped: is asked before each batch of evaluations.
    """

    expect: Callable[[int], object] = _ignore
    advance: Callable[[int], object] = _ignore
    is_stopped: Callable[[], bool] = lambda: False


UNWATCHED = Watch()
