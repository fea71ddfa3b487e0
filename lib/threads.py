"""The threads that a computation on the CPU is shared out over."""

import os
import time
from pathlib import Path

import torch

# How long the idle time of the cores is watched: ten of the kernel's ticks of 10 ms.
_WATCHED_SECONDS = 0.1


def suitable(is_small: bool) -> int:
    """Return how many threads to compute with, where the user does not say.

    One for work so small that a second thread gains nothing. Otherwise one for each core that is idle now:
    the threads of a layer wait for the slowest, so a core that another process uses slows down all of them.

    Args:
        is_small: see `lib.models.is_small`.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")  # torchrun sets it to share the cores among its processes
    if given.isdecimal() and int(given) > 0:
        return 1 if is_small else int(given)
    cores = _cores()
    return 1 if is_small or len(cores) == 1 else max(1, round(_idle(cores)))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(_cores())


def use(count: int) -> None:
    """Compute with `count` threads from now on."""
    torch.set_num_threads(count)


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _idle(cores: set[int]) -> float:
    """Return how many of the cores are idle, a number between 0 and theirs; all where that is not known."""
    before = _idle_and_total(cores)
    time.sleep(_WATCHED_SECONDS)
    idle, total = (after - earlier for after, earlier in zip(_idle_and_total(cores), before, strict=True))
    return len(cores) * idle / total if total > 0 else len(cores)


def _idle_and_total(cores: set[int]) -> tuple[int, int]:
    """Return the ticks that the cores have been idle, and all their ticks (0 and 0 where not known)."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:  # not Linux
        return 0, 0
    names = {f"cpu{core}" for core in cores}
    ticks = [[int(word) for word in words[1:9]] for line in lines if (words := line.split())[0] in names]
    return sum(row[3] + row[4] for row in ticks), sum(map(sum, ticks))  # idle, or waiting for a disk
