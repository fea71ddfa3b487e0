"""Settings of the memory allocator of the GNU C library; without effect with other C libraries."""

import ctypes

# From malloc.h. https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 * 2**20  # the largest that mallopt accepts; larger blocks still go back when freed
_MOST = 2**31 - 1


def keep_what_is_freed() -> None:
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
