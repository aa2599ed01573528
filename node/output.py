"""What a job writes to stdout and stderr: how it gets into their files, and what is read of it.

The job may close or replace its streams, so nothing here fails when they aren't what they were.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

OUTPUT_BYTES = 1 << 20  # of stdout and of stderr of one job; the rest is cut


def set_buffering(by_line: bool) -> None:
    """Print line by line from now on, or in blocks."""
    # When the job has closed or replaced it, or is just writing, it stays as it is.
    with suppress(AttributeError, OSError, RuntimeError, ValueError):
        sys.stdout.reconfigure(line_buffering=by_line)  # type: ignore[union-attr]


def flush_streams() -> None:
    """Write what the job has printed and what is still in this process."""
    for stream in (sys.stdout, sys.stderr):
        # When the job has closed or replaced it, what's in its hands is its business.
        try:  # noqa: SIM105 - `suppress` is dearer than all of this, in a fresh process
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass


def read_output(fd: int, size: int) -> bytes:
    """Return what a job wrote, of ``size`` bytes by its end, up to the limit."""
    if not size:
        return b""
    data = os.pread(fd, min(size, OUTPUT_BYTES), 0)
    return data if size <= OUTPUT_BYTES else data + cut_mark()


def cut_mark() -> bytes:
    """Return the line that ends an output of which the rest was thrown away."""
    return b"\n[output cut: more than %d bytes]\n" % OUTPUT_BYTES
