"""A file without a name for what would take too much memory; it is gone with the process."""

from __future__ import annotations

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
            self._file = tempfile.TemporaryFile(prefix="dispy-frames-")  # noqa: SIM115 (see close)
        self._file.seek(offset)
        self._file.write(data)

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written."""
        assert self._file is not None
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
