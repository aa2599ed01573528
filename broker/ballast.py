"""How much room the journal has: on its disk, and below the limit that was set.

A ballast file takes space that is given up when the disk is full, so that what has begun can go
on while no new jobs are taken. ``trouble`` doesn't change from one look to the next unless the
situation does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE = "ballast"
BALLAST_BYTES = 16 << 20  # ... but at most an eighth of the file system
PIECE_BYTES = 1 << 20
LOW_WATER = 2  # ballasts that must be free, or no jobs are taken
HIGH_WATER = 3  # ... until there are so many
RELIEF = 0.9  # of the limit: below it, jobs are taken again


class Room:
    """The disk of a folder. ``trouble`` says to users why no jobs are taken; empty: they are."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """``max_bytes``: how much of the journal may be in use; 0: no limit."""
        self.trouble = ""
        self._folder = folder
        self._path = folder / FILE
        self._max_bytes = max_bytes
        system = os.statvfs(folder)
        self._size = min(BALLAST_BYTES, system.f_blocks * system.f_frsize // 8)
        self._is_short = False  # of space on the disk
        self._is_long = False  # the journal

    def look(self, used_bytes: int) -> None:
        """See how much room there is now; the journal itself needs so much."""
        self._look_at_disk()
        if self._max_bytes:
            limit = self._max_bytes * RELIEF if self._is_long else self._max_bytes
            self._is_long = used_bytes > limit
        self.trouble = self._text()

    def give_up(self) -> bool:
        """The disk is full: remove the ballast. Return whether there was any."""
        self._is_short = True
        self.trouble = self._text()
        try:
            self._path.unlink()
        except OSError:  # it isn't there: it was given up before, or never fitted
            return False
        return True

    def _look_at_disk(self) -> None:
        free = self._free_bytes()
        if self._is_short:
            self._is_short = free <= HIGH_WATER * self._size
        if not self._is_short and not self._has_ballast():
            self._is_short = not self._make_ballast()
            free = self._free_bytes()
        self._is_short |= free < LOW_WATER * self._size

    def _free_bytes(self) -> int:
        system = os.statvfs(self._folder)
        return system.f_bavail * system.f_frsize

    def _has_ballast(self) -> bool:
        try:
            return self._path.stat().st_size == self._size
        except FileNotFoundError:
            return False

    def _make_ballast(self) -> bool:
        """Fill the file with what no file system can make smaller; tell whether that worked."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(self._path, flags, 0o600), "wb", buffering=0) as file:
                for begin in range(0, self._size, PIECE_BYTES):
                    file.write(os.urandom(min(PIECE_BYTES, self._size - begin)))
        except OSError:  # no room: that's what this is about
            with suppress(OSError):
                self._path.unlink()
            return False
        return self._has_ballast()

    def _text(self) -> str:
        if self._is_short:
            return (
                f"the disk of the broker's journal is full: {self._folder}. New jobs are "
                "accepted when there is room again"
            )
        if self._is_long:
            return (
                f"the broker's journal has reached its limit of {self._max_bytes >> 20} MiB: "
                "new jobs are accepted when others have ended and their results were fetched"
            )
        return ""
