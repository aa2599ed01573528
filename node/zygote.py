"""The zygote: a small, clean Python that the node starts first and forks everything from.

It has no threads, no secrets and no sockets but one to the node, so a fork of it is cheap and
safe. It loads what all job processes need, forks a template for each computation, and ends
what a template that was killed has left behind. When the node is gone, even by ``kill -9``, it
ends everything below it, then itself.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from . import template
from .channel import TEXT_CHARS, Channel, ChannelClosed
from .forkhooks import deferred_hooks
from .processes import Children, adopt_orphans, die_with_parent, end_descendants, signal_all
from .rehearsal import adapt_code

CLEANUP_S = 60.0  # how long a cleanup function may run
DYING_S = 3.0  # how long a node that was killed may take to be gone: it may wait for the disk
GRACE_S = 8.0  # from SIGTERM to SIGKILL of a template, which ends its jobs in the meantime
END_S = 1.5  # ... when all ends; twice that is less than the node waits before it kills us


def import_for_jobs() -> None:
    """Import what every job process needs, without making each fork dearer than it must be."""
    with deferred_hooks():
        import traceback  # noqa: F401

        import dispy.protocol.functions  # noqa: F401


class Zygote:
    """Forks the templates, and looks after what they leave."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.dismissed = False  # the node ends as it should, or lives on
        self._computations: dict[int, int] = {}  # process id of the template to computation
        self._deadlines: dict[int, float] = {}  # process id to when it's killed
        self._cleanups: dict[int, float] = {}  # process id to when its cleanup is ended
        self._ended: list[tuple[int, int]] = []  # computation, exit code; still to be told
        self._children = Children()
        self._wakeup = template.listen_for_signals()

    def run(self) -> None:
        """Serve the node until it's gone."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(100 if self._deadlines or self._ended else None)]
            if self._wakeup in ready:
                template.drain(self._wakeup)
            self._on_children()
            if self._channel.fileno() in ready:
                try:
                    self._on_message()
                except ChannelClosed:
                    return

    def end(self) -> None:
        """Let the templates end (they notice by themselves), then kill what is left."""
        deadline = time.monotonic() + END_S
        signal_all(self._computations, signal.SIGTERM)
        while self._computations and time.monotonic() < deadline:
            select.select([self._wakeup], [], [], 0.1)
            self._reap()
        end_descendants(self._children, (), END_S)

    def _on_message(self) -> None:
        received = self._channel.receive()
        if received is None:
            return
        (kind, computation, *rest), descriptors = received
        if kind == "prepare":
            self._prepare(computation, descriptors, *rest)
        elif kind == "close":
            self.dismissed = True
        else:
            self._end_template(computation, *rest)

    def _prepare(
        self,
        computation: int,
        descriptors: list[int],
        plan_bytes: int,
    ) -> None:
        zygote = os.getpid()
        pid = -1
        reason = "too many open files"
        try:
            if descriptors:
                pid = os.fork()
        except OSError as error:
            reason = error.strerror or str(error)
        if pid == 0:
            self._be_template(zygote, descriptors, plan_bytes)
        for fd in descriptors:
            os.close(fd)
        if pid > 0:
            self._computations[pid] = computation
        else:
            self._channel.send(("unborn", computation, reason[:TEXT_CHARS]))

    def _be_template(self, zygote: int, descriptors: list[int], plan_bytes: int) -> NoReturn:
        """Turn a forked copy of the zygote into a template, dropping what's not for it."""
        try:
            os.close(signal.set_wakeup_fd(-1))
            os.close(self._wakeup)
            self._channel.close()
            self._children.close()
            connection, code = descriptors
            template.run(socket.socket(fileno=connection), zygote, code, plan_bytes)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(1)

    def _end_template(self, computation: int, was_ready: bool) -> None:
        """Tell a template to end. One that was ready may run the user's cleanup function."""
        now = time.monotonic()
        for pid, known in self._computations.items():
            if known == computation:
                signal_all([pid], signal.SIGTERM)
                self._deadlines[pid] = now + GRACE_S
                if was_ready:
                    self._cleanups[pid] = now + CLEANUP_S
                    self._deadlines[pid] += CLEANUP_S

    def _on_children(self) -> None:
        """Reap; kill what dead templates left; tell of a template once nothing of it is left."""
        now = time.monotonic()
        late = [pid for pid, limit in self._cleanups.items() if now > limit]
        signal_all(late, signal.SIGTERM)
        for pid in late:
            del self._cleanups[pid]
        signal_all([pid for pid, limit in self._deadlines.items() if now > limit], signal.SIGKILL)
        self._reap()
        leftovers = self._children.pids() - self._computations.keys()
        signal_all(leftovers, signal.SIGKILL)
        if not leftovers:
            for computation, code in self._ended:
                self._channel.send(("gone", computation, code))
            self._ended.clear()

    def _reap(self) -> None:
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                self._deadlines.pop(pid, None)
                self._cleanups.pop(pid, None)
                if pid in self._computations:
                    code = os.waitstatus_to_exitcode(status)
                    self._ended.append((self._computations.pop(pid), code))
        except ChildProcessError:
            pass


def main(folder: str, connection: int, node: int) -> None:
    """Be the zygote of the node with this process id, over this descriptor.

    The node removes its folder itself, unless it is killed.
    """
    os.environ.pop("LD_BIND_NOW", None)  # the node's wish for this process, not for programs
    import_for_jobs()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)  # what the code of a computation prints goes to the log
    adapt_code()
    zygote = Zygote(Channel(socket.socket(fileno=connection), blocking=True))
    signal.signal(signal.SIGTERM, _on_terminate)
    adopt_orphans()
    try:
        _serve(zygote, node)
    finally:
        zygote.end()
        if not zygote.dismissed and _is_gone(node):  # it was killed
            import shutil  # only now: all that is loaded makes each fork dearer

            shutil.rmtree(folder, ignore_errors=True)


def _serve(zygote: Zygote, node: int) -> None:
    """Run until the node is gone, of which two signs come in any order: that, and SIGTERM."""
    try:
        die_with_parent(node, signal.SIGTERM)
        gc.collect()
        gc.freeze()
        zygote.run()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_gone(node: int) -> bool:
    """Whether the node has died, or dies now: its threads do so one by one.

    Else somebody has sent SIGTERM to this process only, and the node starts another.
    """
    deadline = time.monotonic() + DYING_S
    while os.getppid() == node:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _on_terminate(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
