"""A file without a name for what would take too much memory; it is gone with the process."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import IO

from .messages import Buffer


class FileShelf:
    """Implements `framecache.Shelf`; the file is made when it is needed."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def write(self, offset: int, data: Buffer) -> None:
        """Put bytes to a place. Raises `OSError` when the disk is full."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 (see close)
                prefix="dispy-frames-",
                buffering=0,  # what finds no room is to be known now, not when it's read
            )
        view = memoryview(data).cast("B")
        while view:
            view = view[os.pwrite(self._file.fileno(), view, offset + len(data) - len(view)) :]

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written. Raises `OSError` when the disk has lost it."""
        assert self._file is not None
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) < size:
            raise OSError(errno.EIO, "the file is too short")
        return data

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
