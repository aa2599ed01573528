"""Placing files: those of a computation, and the folders of jobs that have files of their own.

Contents come from the store, by name; where a file goes came from outside and is only used by
its parts. This runs in templates and job processes, and is imported there when it's needed.
"""

from __future__ import annotations

import builtins
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from dispy.protocol.folders import FileNameError, NewFile, parts_of

from .plan import FileEntry

COPY_BYTES = 1 << 26  # in one system call
MTIME_S = 0.001  # file systems keep times with different precision


def enter_folder(above: str, folder: str) -> None:
    """Make a folder whose name below ``above`` came from outside, and go there.

    Raises `OSError` for a link on the way.
    """
    os.makedirs(above, mode=0o700, exist_ok=True)
    os.chdir(above)
    name = os.path.relpath(folder, above)
    for part in parts_of(name) if name != "." else []:
        with suppress(FileExistsError):
            os.mkdir(part, 0o700)
        if not stat.S_ISDIR(os.lstat(part).st_mode):
            raise NotADirectoryError(f"{part!r} in {name!r} is not a folder")
        os.chdir(part)


def place(blobs: str, folder: str, file: FileEntry) -> None:
    """Put a file into a folder, unless it's there already.

    Raises `OSError`, or `FileNameError` for a name that leads out.
    """
    parts = parts_of(file.path)
    if _is_there(os.path.join(folder, *parts), file):
        return
    new = NewFile(folder, file.path)
    try:
        _copy(os.path.join(blobs, file.blob), new.file.fileno(), file.size)
    except OSError:
        new.discard()
        raise
    new.commit(file.mode, file.mtime)


def place_all(blobs: str, folder: str, files: Iterable[FileEntry]) -> None:
    """Put files into a folder. Raises `OSError` that names the file."""
    for file in files:
        try:
            place(blobs, folder, file)
        except (OSError, ValueError) as error:
            raise OSError(f"the file {file.path!r} can't be placed: {error}") from None


def _is_there(path: str, file: FileEntry) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    same = found.st_size == file.size and abs(found.st_mtime - file.mtime) <= MTIME_S
    return same and stat.S_ISREG(found.st_mode) and bool(file.mtime)


def _copy(source: str, target: int, size: int) -> None:
    """Copy a blob; the kernel does it where it can, without reading it where the disk can."""
    blob = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copied = _copy_in_kernel(blob, target, size)
        while copied < size and (data := os.pread(blob, 1 << 20, copied)):
            while data:
                written = os.write(target, data)
                copied, data = copied + written, data[written:]
    finally:
        os.close(blob)
    if copied != size:
        raise OSError(f"the store has {copied} bytes of it instead of {size}")


def _copy_in_kernel(blob: int, target: int, size: int) -> int:
    copied = 0
    with suppress(AttributeError, OSError):  # not on all systems, nor between all disks
        while copied < size:
            count = os.copy_file_range(blob, target, min(size - copied, COPY_BYTES), copied)
            if not count:
                break
            copied += count
    return copied


def remove_files(top: str, folder: str, paths: Iterable[str]) -> None:
    """Remove files that were placed, what Python has compiled of them, and empty folders.

    ``folder`` is somewhere below ``top``, which stays.
    """
    import shutil

    way = os.path.relpath(folder, top).split(os.sep)
    above = {os.path.join(top, *way[:depth]) for depth in range(1, len(way) + 1)}
    for path in paths:
        try:
            parts = parts_of(path)
        except FileNameError:
            continue  # it was refused when it was to be placed
        holder = os.path.join(folder, *parts[:-1])
        if not _leads_out(folder, parts[:-1]):
            with suppress(OSError):
                os.unlink(os.path.join(holder, parts[-1]))
            if parts[-1].endswith(".py"):
                shutil.rmtree(os.path.join(holder, "__pycache__"), ignore_errors=True)
        above |= {os.path.join(folder, *parts[:depth]) for depth in range(1, len(parts))}
    for each in sorted(above, key=len, reverse=True):
        with suppress(OSError):  # not empty
            os.rmdir(each)


def _leads_out(folder: str, parts: Sequence[str]) -> bool:
    """Whether a job has put a link in the place of a folder."""
    for part in parts:
        folder = os.path.join(folder, part)
        if os.path.islink(folder):
            return True
    return False


class JobFolder:
    """The folder of a job that has files of its own: the computation's folder, and those."""

    def __init__(self, folder: str, base: str, blobs: str, files: Sequence[FileEntry]) -> None:
        self._folder = folder
        self._base = base
        self._blobs = blobs
        self._files = files

    def enter(self) -> None:
        """Make it and go there. Raises `OSError`, and then it must still be left."""
        os.makedirs(self._folder, mode=0o700)
        _mirror(self._base, self._folder, [parts_of(file.path) for file in self._files])
        place_all(self._blobs, self._folder, self._files)
        os.chdir(self._folder)
        self._move(self._base, self._folder)

    def leave(self) -> None:
        """Go back, and remove it with all that the job has left in it."""
        import shutil

        with suppress(OSError):  # the job has removed it, and spoils nobody's result by that
            os.chdir(self._base)
        self._move(self._folder, self._base)
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(self._folder + os.sep):
                del sys.modules[name]
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _move(old: str, new: str) -> None:
        sys.path[:] = [new if each == old else each for each in sys.path]
        builtins.dispy_job_path = new  # type: ignore[attr-defined]


def _mirror(source: str, target: str, new: Sequence[Sequence[str]]) -> None:
    """Link to all that is in a folder, but where something ``new`` (its parts) will be."""
    tops = {parts[0] for parts in new}
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            if entry.name not in tops:
                os.symlink(entry.path, path)
            elif below := [p[1:] for p in new if p[0] == entry.name and len(p) > 1]:
                os.mkdir(path, 0o700)
                if entry.is_dir():
                    _mirror(entry.path, path, below)
