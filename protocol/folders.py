"""Files with names from the other side: below one folder, and whole or not there at all.

A name is checked by its parts and never joined to a path. Folders on the way are opened one by
one without following links, and a file appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .errors import DispyError

NAME_BYTES_MAX = 255  # of one part
DEPTH_MAX = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC


class FileNameError(DispyError, ValueError):
    """A name leads, or could lead, out of its folder; the message says which and why."""


def parts_of(name: str) -> list[str]:
    """Return the parts of a relative name such as "data/x.txt".

    Raises `FileNameError` for absolute names, "..", empty or overlong parts and NUL.
    """
    parts = name.split("/")
    if len(parts) > DEPTH_MAX:
        raise FileNameError(f"the file name {name[:80]!r}... has more than {DEPTH_MAX} parts")
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or "\\" in part:
            raise FileNameError(f"the file name {name[:200]!r} is not one below a folder")
        if len(os.fsencode(part)) > NAME_BYTES_MAX:
            raise FileNameError(f"the file name {name[:80]!r}... is too long")
    return parts


class NewFile:
    """A file on its way into a folder; write to ``file``, then `commit` or `discard`.

    Folders on the way are made. Raises `FileNameError` for a name that leads out, `OSError`
    for what the system refuses, such as a link on the way.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        *above, self._name = parts_of(name)
        self._folder = _open_folder(folder, above)
        self._temporary = f".{secrets.token_hex(8)}.part"
        try:
            fd = os.open(self._temporary, _NEW, 0o600, dir_fd=self._folder)
        except OSError:
            os.close(self._folder)
            raise
        self.file: BinaryIO = os.fdopen(fd, "wb", buffering=0)

    def commit(self, mode: int = 0o644, mtime: float | None = None) -> None:
        """Give the file its name, replacing one that is there.

        ``mode`` are permission bits, ``mtime`` seconds since the epoch.
        """
        try:
            os.fchmod(self.file.fileno(), mode & 0o777)
            if mtime is not None:
                os.utime(self.file.fileno(), (mtime, mtime))
            self.file.close()
            here = self._folder
            os.replace(self._temporary, self._name, src_dir_fd=here, dst_dir_fd=here)
        except OSError:
            self.discard()
            raise
        os.close(self._folder)

    def discard(self) -> None:
        """Leave nothing of it."""
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._folder)
        os.close(self._folder)


def _open_folder(folder: str | Path, parts: list[str]) -> int:
    """Open the folder that these parts lead to, made where it is missing."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            with suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=here)
            below = os.open(part, _FOLDER, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here
