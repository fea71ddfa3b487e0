"""The schedule of a run's log lines: as many as fit a screen, or one every so many updates."""

import math
from dataclasses import dataclass

LINES = 8  # pairs of [TRAIN] and [VALID] lines of a run, besides the first


@dataclass(frozen=True)
class LogSchedule:
    """When a run's sums are taken, and which of its lines are written.

    The sums of the updates are taken at every validation, whether or not their means are written, so that a
    `[TRAIN]` line has the same numbers in a short log as in a long one, and none are lost with a killed run.

    Attributes:
        updates: number of updates of the whole run.
        period: number of updates between validations.
        interval: number of updates between `[TRAIN]` lines; with it, all lines are written. None for a log
            that fits a screen: those of the first validation, the last, and a few between.
    """

    updates: int
    period: int
    interval: int | None

    def takes(self, update: int) -> bool:
        """Return whether a `[TRAIN]` line is due after this update, validated or not."""
        if self.interval:
            return update % self.interval == 0
        validations = max(1, -(-self.updates // self.period))
        parts = max(1, round(LINES / validations))
        length = -(-min(self.period, self.updates) // parts)
        return parts > 1 and update % self.period % length == 0

    def shows(self, update: int) -> bool:
        """Return whether the lines of the validation after this update are written."""
        validations = -(-self.updates // self.period)
        if self.interval or validations <= LINES + 1 or update <= self.period or update == self.updates:
            return True
        number = -(-update // self.period)
        # Denser at the beginning, where curves are steep.
        parts = [int(LINES * math.sqrt(n / validations)) for n in (number - 1, number)]
        return parts[1] > parts[0]
