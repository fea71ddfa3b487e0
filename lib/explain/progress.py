"""Progress reports of long explanations, and requests to stop them early."""

from collections.abc import Callable
from dataclasses import dataclass


class Stopped(Exception):
    """The computation was stopped before it had a usable result."""


def _ignore(_count: int) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """Callbacks of a computation of many forward passes, which is stopped between two of them on request.

    Attributes:
        expect: called with the number of evaluations that are planned, in addition to those before.
        advance: called with the number of evaluations done since the last call.
        is_stopped: called before each batch of evaluations; True stops the computation.
        report: called with the half width of the widest 95 % interval whenever an estimate is made; None if
            nobody watches, so that estimates before the last are only made if they are needed.
    """

    expect: Callable[[int], object] = _ignore
    advance: Callable[[int], object] = _ignore
    is_stopped: Callable[[], bool] = lambda: False
    report: Callable[[float], object] | None = None


UNWATCHED = Watch()
