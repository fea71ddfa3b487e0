"""Tells apart lines that several runs wrote into one log at the same time, where no line says whose it is.

A run's steps only rise. Where they do not, another run wrote in between. A line goes to the run whose latest
step and loss it continues best, so that the answer is a guess wherever two curves meet.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Event = tuple[str, dict]  # a tag and its fields

TRAIN, LOSS = "TRAIN", "Training_loss"
VALID, VALID_LOSS = "VALID", "Valid_loss"
# Of a log without [RUN] lines: so many steps, and this share of all, fall back to the middle of a run. Fewer
# are those of a run that was resumed from a checkpoint.
_FALLS, _SHARE_OF_FALLS = 3, 0.1


@dataclass
class _Chain:
    """The lines that one run has written so far."""

    step: float | None = None
    loss: float | None = None
    interval: float | None = None
    validated: float | None = None
    valid_loss: float | None = None
    last_written: int = -1
    tags: frozenset[str] = frozenset()

    def can_take(self, step: float) -> bool:
        return self.step is None or step > self.step

    def cost(self, step: float, loss: float | None, first: float) -> float:
        """Return how badly the line continues this chain; `first` is the first step of the log."""
        interval = self.interval or first
        jump = abs((step - (self.step or 0)) / interval - 1) if interval else 0.0
        return min(jump, 10.0) + _distance(loss, self.loss)

    def take(self, tag: str, fields: dict, number: int) -> None:
        self.tags |= {tag}
        self.last_written = number
        step = step_of(fields)
        if step is None:
            return
        if tag == TRAIN:
            self.interval = step - self.step if self.step is not None else self.interval
            self.step, self.loss = step, _finite(fields.get(LOSS))
        elif tag == VALID:
            self.validated, self.valid_loss = step, _finite(fields.get(VALID_LOSS))


def step_of(fields: dict) -> float | None:
    """Return the event's step; None if it has none, or none that is finite."""
    return _finite(fields.get("Step"))


def rises(events: Sequence[Event], after: float = -math.inf) -> bool:
    """Tell whether the steps of the `[TRAIN]` lines rise from line to line, from a step `after` on."""
    for tag, fields in events:
        step = step_of(fields)
        if tag == TRAIN and step is not None:
            if step <= after:
                return False
            after = step
    return True


def are_interleaved(events: Sequence[Event]) -> bool:
    """Tell whether several runs wrote these lines of a log without [RUN] lines at the same time."""
    steps = [step for tag, fields in events if tag == TRAIN and (step := step_of(fields)) is not None]
    if not steps:
        return False
    first = min(steps)
    falls = sum(first < now <= before for before, now in itertools.pairwise(steps))
    return falls >= max(_FALLS, _SHARE_OF_FALLS * len(steps))


def owners(
    events: Sequence[Event], starts: Sequence[float | None], *, may_begin: bool = False
) -> list[int] | None:
    """Return for each event the number of the run that wrote it, or None if the runs cannot have written all.

    Args:
        events: consecutive events of a log.
        starts: for each run, its latest step before them; None if it has written no `[TRAIN]` line yet.
        may_begin: a line that no run can have written begins another one.
    """
    chains = [_Chain(start) for start in starts]
    steps = [step for tag, fields in events if tag == TRAIN and (step := step_of(fields)) is not None]
    first = min(steps, default=0.0)
    found = []
    for number, (tag, fields) in enumerate(events):
        owner = _owner(chains, tag, fields, first)
        if owner is None:
            if not may_begin:
                return None
            owner = len(chains)
            chains.append(_Chain())
        chains[owner].take(tag, fields, number)
        found.append(owner)
    return found


def _owner(chains: list[_Chain], tag: str, fields: dict, first: float) -> int | None:
    step = step_of(fields)
    everyone = range(len(chains))
    if tag == TRAIN and step is not None:
        able = [each for each in everyone if chains[each].can_take(step)]
        loss = _finite(fields.get(LOSS))
        return _best(able, lambda each: chains[each].cost(step, loss, first))
    if not chains:
        return None
    if tag == VALID and step is not None:
        # A [TRAIN] line of the same step stands before it.
        exact = [each for each in everyone if chains[each].step == step != chains[each].validated]
        loss = _finite(fields.get(VALID_LOSS))
        return _best(
            exact or everyone, lambda each: _distance(loss, chains[each].valid_loss or chains[each].loss)
        )
    if step is None:  # [PLAN], [EVAL], [DONE]: each run writes its own
        without = [each for each in everyone if tag not in chains[each].tags]
        return _best(without or everyone, lambda each: -chains[each].last_written)
    return _best(everyone, lambda each: -chains[each].last_written)


def _best(choices: Sequence[int], cost: Callable[[int], float]) -> int | None:
    return min(choices, key=cost, default=None)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _distance(a: float | None, b: float | None) -> float:
    """Return how far two losses are apart: the ratio's logarithm where both are positive."""
    if a is None or b is None:
        return 0.0
    return abs(math.log(a / b)) if a > 0 and b > 0 and 0 < a / b < math.inf else min(abs(a - b), 100.0)
