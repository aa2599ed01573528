"""Files with names from the other side: below one folder, and whole or not there at all.

A name is checked by its parts and never joined to a path. Folders on the way are opened one by
one without following links, and a file appears under its name only when it is complete. Until
then it has no name at all where the system can do that, so a process that is killed leaves
nothing; elsewhere it is a hidden file that ends in ".part".
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import BinaryIO

from .errors import DispyError

NAME_BYTES_MAX = 255  # of one part
PATH_BYTES_MAX = 4096  # of all parts
DEPTH_MAX = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _FOLDER | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_TMPFILE", 0)
_AGAIN = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never waits for a pipe
_NO_UNNAMED = {errno.EISDIR, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT}
_CLOSED = -1


class FileNameError(DispyError, ValueError):
    """A name leads, or could lead, out of its folder; the message says which and why."""


def parts_of(name: str) -> list[str]:
    """Return the parts of a relative name such as "data/x.txt".

    Raises `FileNameError` for absolute names, ".", "..", empty or overlong parts, backslashes,
    drives ("C:x"), control characters, and what can't be the name of a file here.
    """
    parts = name.split("/")
    if len(name) > PATH_BYTES_MAX:
        raise FileNameError(f"the file name {name[:80]!r}... is too long")
    if len(parts) > DEPTH_MAX:
        raise FileNameError(f"the file name {name[:80]!r}... has more than {DEPTH_MAX} parts")
    for part in parts:
        if part in ("", ".", "..") or "\\" in part or part[1:2] == ":":
            raise FileNameError(f"the file name {name[:200]!r} is not one below a folder")
        if any(each < " " or each == "\x7f" for each in part):
            raise FileNameError(f"the file name {name[:200]!r} has a control character in it")
        if _bytes_of(part, name) > NAME_BYTES_MAX:
            raise FileNameError(f"the file name {name[:80]!r}... is too long")
    return parts


class NewFile:
    """A file on its way into a folder; write to ``file``, then `commit` or `discard`.

    Folders on the way are made. Raises `FileNameError` for a name that leads out, `OSError`
    for what the system refuses, such as a link or a file in the place of a folder. Between
    `rest` and `resume` it takes no descriptors. Afterwards, `discard` does nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        self._top = folder
        *self._above, self._name = parts_of(name)
        self._temporary = ""  # its name on the way; empty: it has none
        self._inode: tuple[int, int] | None = None  # while it rests
        self._folder = _open_folder(folder, self._above, make=True)
        try:
            fd = self._create()
        except OSError:
            self._close_folder()
            raise
        self.file: BinaryIO = os.fdopen(fd, "wb", buffering=0)

    def commit(self, mode: int = 0o644, mtime: float | None = None) -> None:
        """Give the file its name, replacing a file or link (but no folder) that is there.

        ``mode`` are permission bits, ``mtime`` seconds since the epoch. Raises `OSError`, and
        then nothing is left of the new file and the old one is as it was.
        """
        try:
            fd = self.file.fileno()
            if mtime is not None:
                _set_mtime(fd, mtime)
            os.fchmod(fd, mode & 0o777)
            self._give_name()
        except OSError:
            self.discard()
            raise
        self.file.close()
        self._close_folder()

    def discard(self) -> None:
        """Leave nothing of it; after `commit` or `discard`, do nothing."""
        with suppress(OSError):  # what could not be written is not wanted
            self.file.close()
        if self._temporary and self._folder == _CLOSED:
            with suppress(OSError):  # somebody has moved the folder: it's out of reach
                self._folder = _open_folder(self._top, self._above, make=False)
        if self._temporary and self._folder != _CLOSED:
            with suppress(OSError):  # somebody has removed it
                os.unlink(self._temporary, dir_fd=self._folder)
        self._temporary = ""
        self._close_folder()

    def rest(self) -> None:
        """Close it for a while, under a hidden name; the next is `resume` or `discard`."""
        if not self._temporary:
            self._temporary = self._link_temporary()
        self._inode = _inode(self.file.fileno())
        self.file.close()
        self._close_folder()

    def resume(self) -> None:
        """Go on where it was. Raises `OSError`; then it can only be discarded."""
        assert self.file.closed
        self._folder = _open_folder(self._top, self._above, make=False)
        fd = os.open(self._temporary, _AGAIN, dir_fd=self._folder)
        self.file = os.fdopen(fd, "wb", buffering=0)
        if _inode(fd) != self._inode:
            raise FileExistsError(errno.EEXIST, "somebody has put another file in its place")
        self.file.seek(0, os.SEEK_END)

    def _create(self) -> int:
        if hasattr(os, "O_TMPFILE") and _has_descriptor_names():
            try:
                return os.open(".", _UNNAMED, 0o600, dir_fd=self._folder)
            except OSError as error:  # not every file system can do that
                if error.errno not in _NO_UNNAMED:
                    raise
        self._temporary = _temporary_name()
        return os.open(self._temporary, _NEW, 0o600, dir_fd=self._folder)

    def _give_name(self) -> None:
        if not self._temporary:
            try:
                self._link(self._name)
            except FileExistsError:
                self._temporary = self._link_temporary()
        if self._temporary:
            self.file.close()  # some systems tell only now that there was no space
            here = self._folder
            os.replace(self._temporary, self._name, src_dir_fd=here, dst_dir_fd=here)
            self._temporary = ""

    def _link_temporary(self) -> str:
        name = _temporary_name()
        self._link(name)
        return name

    def _link(self, name: str) -> None:
        """Give a file that has no name its first one."""
        os.link(f"/proc/self/fd/{self.file.fileno()}", name, dst_dir_fd=self._folder)

    def _close_folder(self) -> None:
        folder, self._folder = self._folder, _CLOSED
        if folder != _CLOSED:
            os.close(folder)


def _open_folder(folder: str | os.PathLike[str], parts: list[str], make: bool) -> int:
    """Open the folder that these parts lead to; ``make``: also where it is missing."""
    here = os.open(folder, _FOLDER)
    for part in parts:
        try:
            below = _open_below(here, part, make)
        finally:
            os.close(here)
        here = below
    return here


def _open_below(here: int, part: str, make: bool) -> int:
    try:
        return os.open(part, _BELOW, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        text = "there is a file or a link where the name needs a folder"
        raise NotADirectoryError(errno.ENOTDIR, text, part) from None
    with suppress(FileExistsError):  # somebody else makes it at the same time
        os.mkdir(part, 0o777, dir_fd=here)
    return _open_below(here, part, make=False)


def _set_mtime(fd: int, mtime: float) -> None:
    try:
        os.utime(fd, (mtime, mtime))
    except (OverflowError, ValueError):  # not a number, or out of range
        raise OSError(errno.EINVAL, f"no file can be of the time {mtime!r}") from None


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _temporary_name() -> str:
    return f".{os.urandom(8).hex()}.part"


def _has_descriptor_names() -> bool:
    """Whether the system shows open files under names, which a name for them can be made from."""
    return os.path.exists("/proc/self/fd")


def _bytes_of(part: str, name: str) -> int:
    try:
        return len(os.fsencode(part))
    except UnicodeEncodeError:
        raise FileNameError(f"the file name {name[:80]!r} can't be one here") from None
