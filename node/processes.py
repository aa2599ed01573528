"""What a process of the node owes its parent and its descendants.

Nothing that a job starts may outlive the node, so each process of the tree dies with its
parent, adopts what its dead children leave behind, and ends that too. Linux has means for all
of it (prctl, /proc); elsewhere only the children that we know of are ended.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in the place of `signal`: see `runner`
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

LINUX = sys.platform == "linux"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_RETRY_S = 0.001  # between two rounds of killing; a killed process takes about so long to go

if LINUX:
    import ctypes

    _prctl = ctypes.CDLL(None).prctl


def die_with_parent(parent: int, signum: int) -> None:
    """Get this signal when the parent (its process id) dies; now if it already has.

    Holds until the next fork: a child has to ask for itself.
    """
    if LINUX:
        _prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def adopt_orphans() -> None:
    """Become the parent of any descendant whose own parent dies."""
    if LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def begin_below(parent: int, signum: int = _signal.SIGKILL) -> None:
    """Be a job process from now on: lead a group, die with the parent, adopt what others leave.

    By ``signum`` it dies; 0: it doesn't.

    A group for signals, no session: the scheduler would take each for a user of its own, and let
    them preempt the node.
    """
    try:  # noqa: SIM105 - `suppress` is dear in a fresh process
        os.setpgid(0, 0)
    except PermissionError:  # the leader of a session, which leads a group, too
        pass
    die_with_parent(parent, signum)
    adopt_orphans()


class Children:
    """The children of this process as the kernel lists them, adopted ones included.

    For a process without threads, and only for the process that made the object.
    """

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):
            path = f"/proc/self/task/{os.getpid()}/children"
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor; -1 where the kernel has no list."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor, in a child that has no use for it."""
        if self._fd >= 0:
            os.close(self._fd)

    def are_more_than(self, count: int) -> bool:
        """Whether there are more children than so many, zombies included."""
        if self._fd < 0:
            return len(self.pids()) > count
        return os.pread(self._fd, 256, 0).count(b" ") > count  # one behind each

    def pids(self) -> set[int]:
        """Return the process ids, those of zombies too; empty where no system tells."""
        if self._fd < 0:
            return _children_by_scan() if LINUX else set()
        text = b""
        while piece := os.pread(self._fd, 65536, len(text)):
            text += piece
        return {int(word) for word in text.split()}


def _children_by_scan() -> set[int]:
    """Find the children on a kernel that doesn't list them, by looking at all processes."""
    mine = os.getpid()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The name of a program may hold anything, so begin behind its last bracket.
                fields = file.read().rpartition(b")")[2].split()
                if int(fields[1]) == mine:
                    found.add(int(name))
    return found


def next_ended() -> int:
    """Return the process id of a child that has ended, without reaping it; 0: none has.

    While a child is a zombie its number, which is also that of its group, is nobody else's. -1
    says that the system can't tell which. Raises `ChildProcessError` when there are no children.
    """
    if sys.platform == "darwin":
        return -1
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found.si_pid if found else 0


def signal_all(pids: Iterable[int], signum: int) -> None:
    """Send a signal to each, gone or not."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def signal_group(leader: int, signum: int) -> None:
    """Send a signal to the group of an unreaped child that leads one, or soon will."""
    try:
        os.killpg(leader, signum)
    except ProcessLookupError:
        signal_all([leader], signum)  # forked, but not yet in its group
    except PermissionError:
        pass


def end_descendants(children: Children, groups: Iterable[int], timeout_s: float) -> None:
    """Kill these groups, all children and all that they leave; return when none is left.

    Returns after ``timeout_s`` in any case: a process in an uninterruptible wait may need
    longer to die, and it will.
    """
    deadline = time.monotonic() + timeout_s
    for leader in groups:
        signal_group(leader, _signal.SIGKILL)
    while reap() and time.monotonic() < deadline:
        signal_all(children.pids(), _signal.SIGKILL)
        time.sleep(_RETRY_S)


def reap() -> bool:
    """Reap all children that have ended; return whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
