"""The template: one process per computation, with its function loaded, that forks the jobs.

It is forked from the zygote, runs the user's code once, to load it, and from then on nothing but
its own loop: fork on demand, reap, and end whatever a dead job process has left. It has no
threads of its own. Whatever ends it ends all its job processes.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # for what each fork does: see `runner`
import builtins
import gc
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from dispy.protocol.payload import unpack_object

from . import runner
from .channel import TEXT_CHARS, Channel, ChannelClosed
from .processes import (
    Children,
    adopt_orphans,
    die_with_parent,
    end_descendants,
    signal_all,
    signal_group,
)

END_S = 5.0  # how long the end of all job processes may take
_HELD_BACK = (_signal.SIGCHLD, _signal.SIGINT, _signal.SIGTERM)  # while forking


def listen_for_signals() -> int:
    """Make a descriptor that becomes readable when a child ends."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)
    return read


def drain(wakeup: int) -> None:
    """Forget the signals so far; call it before looking at the children."""
    with suppress(BlockingIOError):
        os.read(wakeup, 4096)  # what this leaves wakes the loop again


def _ignore(signum: int, frame: object) -> None:
    """Let a signal do nothing but wake the loop."""


_register_at_fork = os.register_at_fork
_deferred: list[dict[str, Any]] = []


def defer_hooks(**hooks: Any) -> None:
    """Stand in for `os.register_at_fork` while modules are imported.

    The hooks of `threading` and `logging` replace locks that another thread may have held. A
    process with one thread has no such locks, and the hooks would double the price of a fork
    by the pages that they touch. So they wait for `register_deferred_hooks`.
    """
    if getattr(hooks.get("after_in_child"), "__module__", "") in ("threading", "logging"):
        _deferred.append(hooks)
    else:
        _register_at_fork(**hooks)


def register_deferred_hooks() -> None:
    """Have the hooks run from now on: threads may start, or have been started."""
    while _deferred:
        _register_at_fork(**_deferred.pop(0))


class Template:
    """Forks the job processes of one computation."""

    def __init__(self, channel: Channel, folder: str) -> None:
        self._channel = channel
        self._folder = folder
        self._pid = os.getpid()
        self._workers: dict[int, int] = {}  # worker to process id
        self._pids: dict[int, int] = {}  # and back
        self._function: Any = None
        self._own: set[int] = set()  # children that loading the function has left running
        self._children = Children()
        self._wakeup = listen_for_signals()
        mine = (self._wakeup, channel.fileno(), self._children.fileno())
        self._descriptors = [fd for fd in mine if fd >= 0]
        signal.signal(signal.SIGTERM, self._on_terminate)

    def load(self, names: dict[str, str], code: int, sizes: Sequence[int]) -> bool:
        """Unpickle the function, tell the node how that went, and return whether it did."""
        os.chdir(self._folder)
        sys.path.insert(0, self._folder)
        sys.modules["__main__"] = type(sys)("__main__")  # ours is no business of the user's
        given = {"os": os, "sys": sys, "time": time, "dispy_job_path": self._folder, **names}
        for name, value in given.items():
            setattr(builtins, name, value)
        try:
            self._function = _unpickle(code, sizes)
        except BaseException as error:
            reason = "the function of the computation could not be loaded"
            text = runner.failure(reason, error, own_frames=2)[2]
            self._channel.send(("failed", text[:TEXT_CHARS]))
            return False
        self._settle()
        self._channel.send(("ready",))
        return True

    def _settle(self) -> None:
        """Make what every fork copies final, and the copying cheap."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._own = self._children.pids()
        if len(sys._current_frames()) > 1:
            register_deferred_hooks()
        gc.collect()
        gc.disable()
        gc.freeze()  # a collection in a child would touch, and so copy, every page

    def run(self) -> None:
        """Serve the node until it's gone."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._wakeup in ready:
                self._on_wakeup()
            if self._channel.fileno() in ready:
                try:
                    self._on_message()
                except ChannelClosed:
                    return

    def end(self) -> None:
        """Kill all job processes and what they left; remove the computation's folder."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has been heard
        import shutil

        end_descendants(self._children, list(self._pids), END_S)

        os.chdir("/")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _on_terminate(self, signum: int, frame: object) -> None:
        if os.getpid() == self._pid:
            self.end()
        os._exit(0)

    # -- messages ------------------------------------------------------------------------

    def _on_message(self) -> None:
        received = self._channel.receive()
        if received is None:
            return
        (kind, worker, number), descriptors = received
        if kind == "spawn":
            self._spawn(worker, number, descriptors)
        elif worker not in self._workers:
            return
        elif kind == "signal":
            signal_group(self._workers[worker], number)
        else:  # "repeat": its other processes have got theirs
            signal_all([self._workers[worker]], number)

    def _spawn(self, worker: int, max_tasks: int, descriptors: list[int]) -> None:
        """Fork a job process; its ends are passed as connection, output, error, [...]."""
        pid = -1
        reason = "too many open files"
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _HELD_BACK)
        try:
            if descriptors:
                pid = os.fork()
        except OSError as error:
            reason = error.strerror or str(error)
        if pid == 0:
            self._be_worker(max_tasks, descriptors)
        if pid > 0:
            self._workers[worker] = pid
            self._pids[pid] = worker
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _HELD_BACK)
        for fd in descriptors:
            os.close(fd)
        if pid < 0:
            self._channel.send(("unborn", worker, reason))

    def _be_worker(self, max_tasks: int, descriptors: list[int]) -> NoReturn:
        """Turn a forked copy of the template into a job process."""
        try:
            # A group for signals, no session: the scheduler would take each for a user of its
            # own, and let them preempt the node.
            os.setpgid(0, 0)
            die_with_parent(self._pid, _signal.SIGKILL)
            adopt_orphans()
            self._shed()
            register_deferred_hooks()
            gc.enable()
            runner.run(self._function, descriptors, max_tasks)
        except BaseException as problem:
            print(f"dispy: a job process could not start: {problem!r}", file=sys.stderr, flush=True)
        os._exit(1)

    def _shed(self) -> None:
        """Drop, in a job process, what belongs to the template: descriptors and signals.

        What the user's own code has opened while it was loaded stays.
        """
        os.close(_signal.set_wakeup_fd(-1))
        # By number, since their owners are never used again, and would touch more pages.
        for fd in self._descriptors:
            os.close(fd)
        for signum in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP):
            _signal.signal(signum, _signal.SIG_DFL)
        # SIGINT stays blocked until the runner has its own handler: it may be for its job.
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGCHLD, _signal.SIGTERM))

    # -- children ------------------------------------------------------------------------

    def _on_wakeup(self) -> None:
        drain(self._wakeup)
        ended: list[tuple[int, int, int]] = []
        while found := self._bury_next():
            ended.append(found)
        leftovers = self._children.pids() - self._pids.keys() - self._own
        signal_all(leftovers, signal.SIGKILL)
        ended = [exit for exit in ended if exit[0]]
        if ended:
            self._channel.send(("exited", ended))

    def _bury_next(self) -> tuple[int, int, int] | None:
        """Reap a child that has ended; return its worker (0: none), status and peak KiB."""
        with suppress(ChildProcessError):
            pid = _next_ended()
            if pid in self._pids:
                signal_group(pid, signal.SIGKILL)
            pid, status, usage = os.wait4(pid or -1, os.WNOHANG)
            worker = self._pids.pop(pid, 0)
            self._workers.pop(worker, None)
            self._own.discard(pid)
            if pid:
                return worker, os.waitstatus_to_exitcode(status), usage.ru_maxrss
        return None


def _next_ended() -> int:
    """Return the process id of a child that has ended, without reaping it; 0: can't tell.

    While a child is a zombie its number, which is also that of its group, is nobody else's.
    Raises `ChildProcessError` when there are no children.
    """
    if sys.platform == "darwin":
        return 0
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found.si_pid if found else 0


def _unpickle(code: int, sizes: Sequence[int]) -> Any:
    """Read a pickled object and its buffers, one after the other, from a file."""
    with open(code, "rb") as file:
        readonly, stream = unpack_object(file.read(sizes[0]))
        parts: list[bytes | bytearray] = []
        for constant, size in zip(readonly, sizes[1:], strict=True):
            data = file.read(size)
            parts.append(data if constant else bytearray(data))
    return pickle.loads(stream, buffers=parts)


def run(
    connection: socket.socket,
    zygote: int,
    code: int,
    folder: str,
    names: dict[str, str],
    sizes: Sequence[int],
) -> NoReturn:
    """Be a template, in a fresh fork of the zygote (its process id)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    template = Template(Channel(connection, blocking=True), folder)
    die_with_parent(zygote, signal.SIGTERM)
    adopt_orphans()
    if template.load(names, code, sizes):
        template.run()
    template.end()
    os._exit(0)
