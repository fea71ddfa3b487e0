"""The memory of this process, where the C library is GNU's."""

import ctypes

# From malloc.h. https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 * 2**20  # that it takes; what is larger is given back when it is freed, as before
_MOST = 2**31 - 1


def keep_what_is_freed() -> None:
    """Let the next update use the memory that one has freed.

    By default it goes back to the system, which hands it out anew page by page, each filled with zeros:
    some quarter of an update of fast-cnn on two cores. The process then stays as large as it once was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _MOST)
