"""The recover file itself: made, locked while its program lives, written, removed.

It is never synced, since it has to outlive the program, not the machine. It holds what jobs were
given, and what makes nodes believe that one is their broker: so only its owner may read it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .log import logger
from .recorded import MAGIC, ProgramRecord, Record, Recorded, RecoverError, framed, read

try:
    import fcntl
except ImportError:  # Windows: a file whose program still runs isn't noticed there
    fcntl = None  # type: ignore[assignment]

PREFIX = "_dispy_"
REWRITE_BYTES = 64 << 20  # what the file may grow by before ended jobs are left out of it

_own: set[Path] = set()  # files of this process, which must not even be opened: see `_lock`


class RecoverFile:
    """A file that is being written, and the lock on it.

    A failure is told once; from then on nothing is written.
    """

    def __init__(self, path: Path, descriptor: int, size: int = 0) -> None:
        self.path = path
        self._draft = path.with_name(f".{path.name}.new")  # may be left by a program that died
        self.failed = False
        self.size = size
        self.outdated = 0  # jobs of which it says what isn't true any more
        self._rewrite_at = size + REWRITE_BYTES
        self._descriptor = descriptor
        self.buffered: list[bytes] = [] if size else [MAGIC]  # to be written

    @property
    def is_long(self) -> bool:
        """Whether it has grown so much that it should be rewritten."""
        return self.size >= self._rewrite_at and not self.failed

    def append(self, record: Record) -> None:
        """Add a record; `write` writes it."""
        if not self.failed:
            self.buffered += framed(record)

    def write(self) -> None:
        """Write what has been added since the last time."""
        if not self.buffered:
            return
        data = b"".join(self.buffered)
        self.buffered = []
        try:
            _write_all(self._descriptor, data)
            self.size += len(data)
        except OSError as error:
            self.failed = True
            logger.warning(
                "can't write to the recover file %s (%s): go on without; what happens from now "
                "on can't be recovered",
                self.path,
                error.strerror,
            )

    def rewrite(self, records: Iterable[Record]) -> None:
        """Have only these records in the file."""
        self._rewrite_at = self.size + REWRITE_BYTES  # should it fail
        try:
            descriptor = _create(self._draft)
        except OSError:
            return
        before, self.size = self.size, len(MAGIC)
        try:
            _write_all(descriptor, MAGIC)
            for record in records:
                data = b"".join(framed(record))
                _write_all(descriptor, data)
                self.size += len(data)
            os.replace(self._draft, self.path)
        except OSError:
            self.size = before
            os.close(descriptor)
            with suppress(OSError):
                self._draft.unlink()
            return
        os.close(self._descriptor)
        self._descriptor, self.buffered, self.outdated = descriptor, [], 0
        self._rewrite_at = self.size + REWRITE_BYTES

    def remove(self) -> None:
        """Remove the file, unless somebody has put another one there, and close it."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                self.path.unlink()
                self._draft.unlink()
        self.close()

    def close(self) -> None:
        """Leave the file as it is."""
        if self._descriptor >= 0:
            _own.discard(self.path)
            os.close(self._descriptor)
            self._descriptor = -1


def create(path: Path | None, folder: Path, program: ProgramRecord) -> RecoverFile:
    """Begin a file: at ``path``, or in ``folder`` under a new name. Raises `OSError`."""
    if path is None:
        path, descriptor = _create_new(folder)
    else:
        path = path.absolute()
        if path in _own:
            raise RecoverError(f"{path} is in use by this program")
        descriptor = _create(path)
    _own.add(path)
    file = RecoverFile(path, descriptor)
    file.append(program)
    return file


def open_again(path: Path) -> tuple[RecoverFile, Recorded]:
    """Open the file of a program that is dead; what was cut off of it is removed.

    Raises `OSError`, or `RecoverError` if it's of no use or its program still runs.
    """
    path = path.absolute()
    if path in _own:
        raise RecoverError(f"{path.name} belongs to this program, which still runs")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
    try:
        locked = _lock(descriptor)
        recorded = read(_read_all(descriptor), path.name)
        if not locked:
            program = recorded.program
            raise RecoverError(
                f"the program of {path.name} still runs (process {program.pid} on "
                f"{program.host}), or its jobs are being recovered already"
            )
        os.ftruncate(descriptor, recorded.good_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    _own.add(path)
    return RecoverFile(path, descriptor, recorded.good_bytes), recorded


def look_into(path: Path) -> Recorded:
    """Read a file, whose program may still run. Raises `OSError`."""
    if path.absolute() in _own:
        raise RecoverError(f"{path.name} belongs to this program")
    return read(path.read_bytes(), path.name)


def is_in_use(path: Path) -> bool:
    """Whether the program of a file still runs, or the file is somebody else's."""
    if path.absolute() in _own:
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return True
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def check_path(path: object) -> None:
    """Raise `TypeError` or `OSError` if a file can't be made there, or shouldn't be."""
    if path is None:
        return
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"recover_file must be the path of a file, not {path!r}")
    where = Path(path).absolute()
    if where in _own:
        return
    if where.is_dir():
        raise IsADirectoryError(f"recover_file: {where} is a folder")
    if where.exists() and not where.is_file():
        raise FileExistsError(f"recover_file: {where} is not a file")
    if not where.parent.is_dir():
        raise FileNotFoundError(f"recover_file: there is no folder {where.parent}")
    if where.exists() and where.stat().st_size and not is_recover_file(where):
        raise FileExistsError(
            f"recover_file: {where} exists and is no recover file: it isn't overwritten"
        )


def _create_new(folder: Path) -> tuple[Path, int]:
    """Make a file named after the time; two programs may begin in the same second."""
    stamp = time.strftime("%Y%m%d%H%M%S")
    for count in range(1, 1000):
        path = folder / (PREFIX + stamp + (f"-{count}" if count > 1 else ""))
        with suppress(FileExistsError):
            return path, _create(path, os.O_EXCL)
    raise FileExistsError(f"too many recover files in {folder}")


def _create(path: Path, flags: int = 0) -> int:
    """Open an empty file, and lock it."""
    flags |= os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecoverError(f"{path} is not a file")
        if not _lock(descriptor):
            raise RecoverError(f"another program uses {path}")
        if hasattr(os, "fchmod"):
            with suppress(PermissionError):  # some file systems know no modes
                os.fchmod(descriptor, 0o600)  # it may have been there, for others to read
        os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> bool:
    """Lock a file for as long as this process lives; False: another process has done so.

    A lock of this kind isn't inherited by children, which may outlive the program. It ends
    when *any* descriptor of the file is closed in this process, so it's opened only once.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_recover_file(path: Path) -> bool:
    """Whether a file begins as recover files do. Raises `OSError` if it can't be read."""
    if path.absolute() in _own:
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_all(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    with os.fdopen(os.dup(descriptor), "rb", closefd=False) as file:
        return file.read(size)
