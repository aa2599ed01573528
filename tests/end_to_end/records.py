"""What jobs have really done, written down by themselves: no job may have begun twice."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

ENTRY_BYTES = 8


def note(path: str, number: int) -> None:
    """Append a number, from any process; entries never mix, since each is one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, number.to_bytes(8, "little"))
    os.close(fd)


def noted(path: Path) -> Counter[int]:
    """Return how often each number was written."""
    data = path.read_bytes() if path.exists() else b""
    starts = range(0, len(data), ENTRY_BYTES)
    return Counter(int.from_bytes(data[at : at + ENTRY_BYTES], "little") for at in starts)
