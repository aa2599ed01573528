"""How a process keeps its memory while payloads come and go.

They do so in pieces of a megabyte. By default glibc gives each such piece back to the kernel
at once, and then every page of the next one is a fault: a third of the time that a payload
takes. So nodes, and programs with large results, keep some freed memory; but none of longer
frames, which only strangers send: what they have poured in goes with them.
"""

from __future__ import annotations

import logging
import os
import sys

from .wire import CHUNK_BYTES

M_TRIM_THRESHOLD = -1  # names and numbers of malloc.h
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 16 << 20
MAPPED_BYTES = 5 * CHUNK_BYTES // 4  # blocks from this size on are still mapped one by one
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
log = logging.getLogger("dispy.protocol")

_kept = 0


def keep_freed(count: int = KEPT_BYTES) -> None:
    """Keep so many bytes of freed memory at most, where the C library can be told to (glibc).

    Does nothing when it was called before, or the user has settings of their own in the
    environment: see mallopt(3).
    """
    global _kept
    if _kept or sys.platform != "linux":
        return
    _kept = count
    if any(name in os.environ for name in SETTINGS):
        log.debug("how much freed memory is kept is said in the environment")
        return
    import ctypes  # only who carries large payloads pays for it

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        log.debug("this C library has no mallopt")
        return
    mallopt(M_TRIM_THRESHOLD, count)
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
