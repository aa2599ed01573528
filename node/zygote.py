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
from collections.abc import Callable
from typing import Any

from . import template
from .channel import TEXT_CHARS, Channel, ChannelClosed
from .processes import Children, adopt_orphans, die_with_parent, end_descendants, signal_all

GRACE_S = 8.0  # from SIGTERM to SIGKILL of a template, which ends its jobs in the meantime


class ForkHooks:
    """Keeps the after-fork hooks of `threading` and `logging` from running without need.

    They replace locks that another thread may have held during the fork. A process with one
    thread has no such locks, and running the hooks would double the price of a fork by the
    pages that they touch. So they are run only when there were other threads.
    """

    def __init__(self) -> None:
        self._register = os.register_at_fork
        self._threaded = False
        self._register(before=self._look)

    def install(self) -> None:
        """Stand between the two modules and the system; call it before they are imported."""
        os.register_at_fork = self._on_register  # type: ignore[assignment]

    def remove(self) -> None:
        """Step back; what was registered stays guarded."""
        os.register_at_fork = self._register

    def _look(self) -> None:
        self._threaded = len(sys._current_frames()) > 1

    def _on_register(self, **hooks: Callable[[], Any]) -> None:
        owner = getattr(hooks.get("after_in_child"), "__module__", "")
        if owner in ("threading", "logging"):
            hooks = {when: self._guarded(hook) for when, hook in hooks.items()}
        self._register(**hooks)  # type: ignore[call-overload]

    def _guarded(self, hook: Callable[[], Any]) -> Callable[[], None]:
        return lambda: hook() if self._threaded else None


class Zygote:
    """Forks the templates, and looks after what they leave."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._computations: dict[int, int] = {}  # process id of the template to computation
        self._deadlines: dict[int, float] = {}  # process id to when it's killed
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
        deadline = time.monotonic() + GRACE_S
        signal_all(self._computations, signal.SIGTERM)
        while self._computations and time.monotonic() < deadline:
            select.select([self._wakeup], [], [], 0.1)
            self._reap()
        end_descendants(self._children, (), GRACE_S)

    def _on_message(self) -> None:
        received = self._channel.receive()
        if received is None:
            return
        (kind, computation, *rest), descriptors = received
        if kind == "prepare":
            self._prepare(computation, descriptors, *rest)
        else:
            self._end_template(computation)

    def _prepare(
        self,
        computation: int,
        descriptors: list[int],
        folder: str,
        names: dict[str, str],
        sizes: list[int],
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
            self._shed()
            connection = socket.socket(fileno=descriptors[0])
            template.run(connection, zygote, folder, names, descriptors[1], sizes)
        for fd in descriptors:
            os.close(fd)
        if pid > 0:
            self._computations[pid] = computation
        else:
            self._channel.send(("unborn", computation, reason[:TEXT_CHARS]))

    def _shed(self) -> None:
        """Drop, in a template, what belongs to the zygote."""
        write = signal.set_wakeup_fd(-1)
        os.close(write)
        os.close(self._wakeup)
        self._channel.close()
        self._children.close()

    def _end_template(self, computation: int) -> None:
        for pid, known in self._computations.items():
            if known == computation:
                signal_all([pid], signal.SIGTERM)
                self._deadlines[pid] = time.monotonic() + GRACE_S

    def _on_children(self) -> None:
        """Reap; kill what dead templates left; tell of a template once nothing of it is left."""
        now = time.monotonic()
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
                if pid in self._computations:
                    code = os.waitstatus_to_exitcode(status)
                    self._ended.append((self._computations.pop(pid), code))
        except ChildProcessError:
            pass


def main(connection: int, node: int) -> None:
    """Be the zygote of the node with this process id, over this descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hooks = ForkHooks()
    hooks.install()
    import traceback  # noqa: F401

    import cloudpickle  # noqa: F401

    hooks.remove()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    zygote = Zygote(Channel(socket.socket(fileno=connection), blocking=True))
    signal.signal(signal.SIGTERM, _on_terminate)
    adopt_orphans()
    die_with_parent(node, signal.SIGTERM)
    gc.collect()
    gc.freeze()
    try:
        zygote.run()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        zygote.end()


def _on_terminate(signum: int, frame: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
