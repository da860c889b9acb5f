"""Memory that is freed stays with the process."""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def reuse_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, for programs of our own that compute on a CPU.

    By default it hands the large blocks of a pass back to the system, which has to clear every page of them in the next one: a tenth
    of the time of a small network, and more where several processes do so at once. Elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            mallopt(threshold, 2**31 - 1)
