"""What nodes leave behind that were ended by force together with all that looked after them.

Each node holds a lock in its own folder, which the system takes away with its process, however
it ends. A folder whose lock is free is nobody's. The processes of a node carry its folder's name
in their environment, so also programs are found that jobs have started in sessions of their own.
Folders that computations have named themselves (``dest_path``) are left as they are.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FOLDER = "dispy-node-"  # how the names of nodes' folders begin
MARK = "DISPY_NODE_FOLDER"  # the variable
LOCK = "lock"
YOUNG_S = 60.0  # a folder without a lock may be a node's that is just starting
KILL_S = 5.0  # processes may take so long to be dead


def lock(folder: Path) -> int:
    """Hold the folder's lock as long as this process lives; return its descriptor.

    The file has its name only once it is locked. Raises `OSError`.
    """
    import fcntl

    new = folder / f"{LOCK}-new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / LOCK)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def clean(above: Path) -> list[str]:
    """Remove the folders of dead nodes below this one, after ending their processes.

    Return what was done, a line for each. Folders of other users are not looked at.
    """
    done = []
    for folder in sorted(above.glob(f"{FOLDER}*")):
        if not _is_ours(folder) or _is_in_use(folder):
            continue
        killed = _kill_all(str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        what = "removed" if not folder.exists() else "could not remove all of"
        done.append(f"{what} {folder}, left by a node; processes killed: {killed}")
    return done


def _is_ours(folder: Path) -> bool:
    with suppress(OSError):
        found = folder.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return False


def _is_in_use(folder: Path) -> bool:
    import fcntl

    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _is_young(folder)
    except OSError:
        return True  # it isn't what a node makes
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_young(folder: Path) -> bool:
    try:
        return time.time() < folder.lstat().st_mtime + YOUNG_S
    except OSError:
        return True  # gone meanwhile


def _kill_all(folder: str) -> int:
    """Kill all processes with the mark, also those that they start meanwhile; say how many."""
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_S
    while (found := list(_marked(folder))) and time.monotonic() < deadline:
        for pid in found:
            with suppress(OSError):
                os.kill(pid, 9)
                killed.add(pid)
        time.sleep(0.01)
    return len(killed)


def _marked(folder: str) -> Iterator[int]:
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            dead = process.status() == psutil.STATUS_ZOMBIE
            if not dead and process.environ().get(MARK) == folder and process.pid != os.getpid():
                yield process.pid
