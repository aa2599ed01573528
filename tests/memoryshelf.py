"""A relay's shelf in memory."""

from __future__ import annotations

from dispy.protocol.messages import Buffer


class MemoryShelf:
    """Room for frames, as in a file."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, offset: int, data: Buffer) -> None:
        """Put bytes to a place."""
        missing = offset - len(self._bytes)
        if missing > 0:
            self._bytes += bytes(missing)
        self._bytes[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written."""
        return bytes(self._bytes[offset : offset + size])

    def close(self) -> None:
        """Give the room back."""
        self._bytes.clear()
