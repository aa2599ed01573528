"""Files in memory, which the node shares with its processes by passing their descriptors."""

from __future__ import annotations

import os
import sys


def open_memory(name: str, flags: int, size: int = 0) -> int:
    """Open a file that is in memory, or at least nowhere to be found.

    One that has a ``size`` keeps it where the system can see to that: who shares such memory
    dies when another cuts it off.
    """
    if sys.platform == "linux":
        fd = os.memfd_create(name, os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if size else 0))
    else:
        import tempfile  # only here: a fork pays for all that is loaded

        fd, path = tempfile.mkstemp()
        os.unlink(path)
    try:
        if flags or size:
            import fcntl
        if flags:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        if size:
            os.ftruncate(fd, size)
        if size and sys.platform == "linux":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd
