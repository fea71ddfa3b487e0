"""The threads that a computation on the CPU is shared out over. Torch is imported only where it is used."""

import os

# How often a thread that has finished its part of a layer looks for the next one before it sleeps. By default
# it looks some milliseconds long, and meanwhile keeps from its core the very thread that it waits for, if
# other programs use the cores. An update of lenet5 (128 images, two threads) took 277 ms so, and 20 ms with
# 1,000 looks; on idle cores, 16 ms either way. fast-cnn: 3,560 and 1,348 ms beside others, 356 and 296 alone.
_LOOKS_BEFORE_SLEEP = "1000"


def share_cores_with_others() -> None:
    """Let waiting threads sleep soon; to be called before torch, and with it GNU's OpenMP, is loaded."""
    os.environ.setdefault("GOMP_SPINCOUNT", _LOOKS_BEFORE_SLEEP)


def suitable(is_small: bool) -> int:
    """Return how many threads to compute with, where the user does not say.

    Args:
        is_small: the work gains nothing from a second thread; see `lib.models.is_small`.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")  # torchrun sets it to share the cores among its processes
    if is_small:
        return 1
    return int(given) if given.isdecimal() and int(given) > 0 else cores()


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use(count: int) -> None:
    """Compute with `count` threads from now on."""
    import torch

    torch.set_num_threads(count)
