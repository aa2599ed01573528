"""How the node's process keeps its memory.

Payloads come and go in pieces of a megabyte. By default glibc gives each such piece back to
the kernel at once, and then every page of the next one is a fault: a third of the time that a
payload takes. So the node keeps some freed memory. Only the node does: in a client the
memory is the user's affair.
"""

from __future__ import annotations

import ctypes
import logging
import sys

M_TRIM_THRESHOLD = -1  # names and numbers of malloc.h
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 64 << 20  # freed memory that is kept at most
MAPPED_BYTES = 8 << 20  # blocks from this size on are still mapped one by one
log = logging.getLogger("dispy.node")


def keep_freed() -> None:
    """Keep freed memory for the next payload, where the C library can be told to (glibc)."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        log.debug("this C library has no mallopt")
        return
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
