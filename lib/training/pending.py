"""The sums of the updates since the last log line, kept on the device."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from lib.runtime import distributed
from lib.training.objectives import Sums


class Taken(NamedTuple):
    """The sums of some updates over all ranks.

    Attributes:
        sums: by name, one number for each update: (updates,), on the CPU. The loss comes first.
        examples: how many.
        seconds: how long the updates took.
    """

    sums: dict[str, Tensor]
    examples: float
    seconds: float

    def first_not_finite(self) -> tuple[int, str, float] | None:
        """Return the index of the first update with a sum that is not finite, with its name and value."""
        bad = [
            (int((~torch.isfinite(values)).nonzero()[0]), order, name)
            for order, (name, values) in enumerate(self.sums.items())
            if not torch.isfinite(values).all()
        ]
        if not bad:
            return None
        index, _, name = min(bad)
        return index, name, float(self.sums[name][index])

    def means(self) -> dict[str, float]:
        """Return the sums as means over the examples."""
        return {name: float(values.sum()) / self.examples for name, values in self.sums.items()}


class PendingSums:
    """Collects the sums of updates without reading them, because reading a number waits for the device."""

    def __init__(self) -> None:
        self.restart_clock()
        self._sums: dict[str, list[Tensor]] = {}
        self._counts: list[Tensor | int] = []

    def __len__(self) -> int:
        return len(self._counts)

    def restart_clock(self) -> None:
        self._started = time.perf_counter()

    def add(self, sums: Sums) -> None:
        """Add the sums of one update: `loss`, `count`, and any others.

        Raises:
            ValueError: the names differ from those of the update before, so that a sum would have no mean.
        """
        # The loss first: where several sums break in one update, the error names it.
        names = ("loss", *(name for name in sums if name not in ("loss", "count")))
        if self._sums and self._sums.keys() != set(names):
            raise ValueError(f"this update has the sums {names}; the ones before, {tuple(self._sums)}")
        for name in names:
            self._sums.setdefault(name, []).append(torch.as_tensor(sums[name]).detach())
        self._counts.append(sums["count"])

    def take(self, device: torch.device) -> Taken:
        """Return all sums that were added since the last call, and forget them."""
        sums = {
            name: distributed.total(torch.stack(values).float().to(device)).cpu()
            for name, values in self._sums.items()
        }
        examples = float(distributed.total(torch.as_tensor(sum(self._counts), device=device)))
        seconds = time.perf_counter() - self._started
        self._sums, self._counts = {}, []
        self.restart_clock()
        return Taken(sums, examples, seconds)
