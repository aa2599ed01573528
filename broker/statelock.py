"""Only one process at a time may use a state folder.

The lock ends with the process, however it ends; its file stays, with the pid for messages.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from .journalerrors import JournalError, JournalForbidden, JournalLocked

FILE = "journal.lock"
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class StateLock:
    """Holds the lock of a folder, which is made when it isn't there, until `release`."""

    def __init__(self, folder: Path) -> None:
        """Raises `JournalLocked` when another has it, other `JournalError` for system errors."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(folder / FILE, flags, 0o600)
        except OSError as error:
            raise refusal(folder, error) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise JournalLocked(
                f"the journal in {folder} is used by {f'process {pid}' if pid else 'another'}: "
                "stop that broker first, or use another folder"
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise refusal(folder, error) from None
        with suppress(OSError):  # on a full disk: the pid is only for messages
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._fd)


def refusal(folder: Path, error: OSError) -> JournalError:
    """Say why a journal can't be made in a folder, and what to do."""
    kind = JournalForbidden if error.errno in FORBIDDEN else JournalError
    return kind(f"no journal can be kept in {folder}: {error.strerror}. Use another folder")
