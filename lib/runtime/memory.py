"""The memory of this machine: how much there is, and how the GNU C library's allocator handles it."""

import ctypes
import os

# From malloc.h. https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 * 2**20  # the largest that mallopt accepts; larger blocks still go back when freed
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed memory in the process, so that the next update can reuse it.

    By default, freed memory goes back to the system, which fills every page with zeros before it hands it out
    again. That took about a quarter of an update of fast-cnn on two cores. In return, the process stays as
    large as it was at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _MOST)


def physical() -> int | None:
    """Return the bytes of memory that this machine has; None where the system does not tell (Windows)."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return pages * size if pages > 0 and size > 0 else None


def spelled(count: float) -> str:
    """Return a number of bytes as text: `1.5 GB`."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:,.3g} {units[0]}" if count < 1000 else f"{count:,.0f} {units[0]}"
