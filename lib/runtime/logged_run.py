"""A run as its log tells it; `lib.runtime.runlog` reads it."""

import math
from dataclasses import dataclass, field

from lib.runtime.tensorboard import is_number


@dataclass
class Run:
    """One run of a log.

    Attributes:
        id: the id in its [RUN] line; `run 1`, `run 2`, … if the log has no [RUN] lines.
        fields: the fields of its [RUN] line; empty if there is none.
        events: for each tag, the fields of its events in the order of the log.
    """

    id: str
    fields: dict = field(default_factory=dict)
    events: dict[str, list[dict]] = field(default_factory=dict)

    def add(self, tag: str, fields: dict) -> None:
        """Add an event."""
        self.events.setdefault(tag, []).append(fields)

    def series(self, tag: str, key: str) -> tuple[list[float], list[float]]:
        """Return `(steps, values)` of the events of `tag` in which both `Step` and `key` are numbers.

        The values may be NaN or infinite; the steps are finite.
        """
        pairs = [
            (event["Step"], event[key])
            for event in self.events.get(tag, [])
            if is_number(event.get(key)) and is_number(event.get("Step")) and math.isfinite(event["Step"])
        ]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def validations(self, key: str) -> tuple[list[float], list[float]]:
        """Return `(steps, values)` of the validations, with that of the best step, which [BEST] tells."""
        steps, values = self.series("VALID", key)
        for step, value in zip(*self.series("BEST", key), strict=True):
            if step not in steps:
                place = next((i for i, other in enumerate(steps) if other > step), len(steps))
                steps.insert(place, step)
                values.insert(place, value)
        return steps, values

    def keys(self, tag: str) -> list[str]:
        """Return the fields that hold a number in any event of `tag`, in order of first appearance."""
        events = self.events.get(tag, [])
        return list(dict.fromkeys(key for event in events for key in event if is_number(event[key])))

    def steps_per_epoch(self) -> float | None:
        """Return the number of steps in an epoch; None if no event has a field `Epoch`.

        This is `Steps_per_epoch` of the last [PLAN] line, or else the smallest number n for which every event
        lies within its epoch e, that is Step ≤ e · n, where epochs are counted from 1. Earlier versions
        counted them from 0. A log of theirs has an epoch 0, unless it begins with a resumed run.
        """
        stated = [event.get("Steps_per_epoch") for event in self.events.get("PLAN", [])]
        latest = stated[-1] if stated else None
        if is_number(latest) and latest > 0:
            return latest
        pairs = [pair for tag in self.events for pair in zip(*self.series(tag, "Epoch"), strict=True)]
        first = 1 if "Resume_step" not in self.fields and all(epoch >= 1 for _, epoch in pairs) else 0
        return max((step / (epoch + 1 - first) for step, epoch in pairs if epoch >= first), default=None)
