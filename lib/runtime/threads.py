"""The number of CPU threads, and how they wait. Torch is imported only inside the function that needs it."""

import os

from lib.runtime.spelling import whole_number

# How many times a thread that has finished its part of a layer spins in a loop before it sleeps. By default
# it spins for some milliseconds. If other programs use the cores, that can keep a core from the very thread
# that it waits for; and if it sleeps at once, each small layer waits until it is awake. Milliseconds per
# update of the default VAE (256 images) with two threads, and a busy program beside it or none:
#   spins    1,000  2,000  3,000  5,000  20,000
#   shared      57     62     67     87     174
#   idle        30     27     28     27      29
_SPINS_BEFORE_SLEEP = "2000"


def share_cores_with_others() -> None:
    """Make waiting threads sleep early. To be called before torch, and GNU OpenMP with it, is loaded."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS_BEFORE_SLEEP)


def suitable(is_small: bool) -> int:
    """Return the default number of threads.

    Args:
        is_small: whether the network is too small to gain from a second thread; see `lib.models.is_small`.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")  # torchrun sets it to share the cores among its processes
    if is_small:
        return 1
    return whole_number(given) or cores()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use(count: int) -> None:
    """Make torch compute with `count` threads from now on."""
    import torch

    torch.set_num_threads(count)
