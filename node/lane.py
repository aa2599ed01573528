"""A lane: the parent of fresh processes, each of which runs one job, one after the other.

For the node it is a job process like one for many jobs: jobs and tokens come in the same way, and
what ends it tells what has ended its job. But it runs none itself. It forks a process for each,
one ahead of need, and all of them share its connection. How they follow each other is their own
affair (`succession`), so that nobody has to wake between two jobs but the two of them. A process
that ends before it has sent its result takes the lane with it: the lane kills the next one, and
ends in the same way. (So does the next one's job, if it has just begun.)
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in the place of `signal`: see `runner`
import gc
import mmap
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from . import runner
from .forkhooks import register_deferred_hooks
from .jobwire import DONE, INTERRUPTED, OUTBOX_BYTES, PEAK, RUNNING, TURN, head_of
from .memoryfile import open_memory
from .processes import LINUX, Children, adopt_orphans, die_with_parent, signal_all, signal_group
from .runner import Runner
from .succession import EXIT_PASSED, Line, Successor, readable

LEFTOVERS_S = 1.0  # how long to wait for the end of what a job has left
_RETRY_S = 0.0005
_FORWARDED = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGURG)


class Lane:
    """Forks the processes of a lane. They are numbered from 1."""

    def __init__(self, function: Callable[..., Any], descriptors: list[int]) -> None:
        """Take over a connection to the node, stdout, stderr, tokens and outbox."""
        connection, output, error, tokens, outbox = descriptors
        memory = memoryview(mmap.mmap(outbox, OUTBOX_BYTES))
        os.close(outbox)
        outputs = output, error
        self._words = head_of(memory)
        turns = os.pipe(), os.pipe()
        self._line = Line(
            self._words,
            tokens,
            outputs,
            turns,
            open_memory("left", 0),
            readable(tokens),
            (readable(turns[0][0]), readable(turns[1][0])),
        )
        self._runner = Runner(function, runner.connect(connection), tokens, memory, outputs)
        self._pid = os.getpid()
        self._children = Children()
        self._numbers: dict[int, int] = {}  # process id to number
        # Of those that died before the one before them was done: status, and if in their turn.
        self._early: dict[int, tuple[int, bool]] = {}
        self._interrupted = 0  # the number of the last job that was
        self._successor: Successor | None = None  # in the process of a job: itself
        self._log = os.dup(2)  # what isn't of the job that runs goes there

    def run(self) -> NoReturn:
        """Fork, and bury, until something ends a process before its job does."""
        for signum, forward in zip(
            _FORWARDED, (self._interrupt, self._terminate, self._follow), strict=True
        ):
            _signal.signal(signum, forward)
        self._line.give_turn(1)
        while True:
            self._fill()
            self._bury_next()

    # -- the line --------------------------------------------------------------------------

    def _fill(self) -> None:
        """Have a process that runs a job or waits for one, and the next one."""
        present = self._words[DONE] + 1
        for number in (present, present + 1):
            if number in self._numbers.values() or number in self._early:
                continue
            try:
                self._fork(number)
            except OSError:
                if number == present:
                    raise

    def _fork(self, number: int) -> None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _FORWARDED)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_successor(number)
            self._numbers[pid] = number
        finally:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _FORWARDED)

    def _be_successor(self, number: int) -> NoReturn:
        """Turn a forked copy of the lane into the process of one job."""
        try:
            if LINUX:  # elsewhere it wouldn't die with the lane, but it does with its group
                os.setpgid(0, 0)
            die_with_parent(self._pid, _signal.SIGKILL)
            adopt_orphans()
            self._children.close()
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
            _signal.signal(_signal.SIGURG, runner.follow)
            # SIGINT stays blocked until the runner has its own handler.
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGTERM, _signal.SIGURG))
            register_deferred_hooks()
            gc.enable()
            self._successor = Successor(self._line, number, self._runner)
            self._runner.succession = self._successor
            self._successor.run()
        except BaseException as problem:
            text = f"dispy: a job process has failed: {problem!r}\n"
            has_turn = self._successor is not None and self._successor.has_turn
            os.write(2 if has_turn else self._log, text.encode("utf-8", "backslashreplace"))
        os._exit(1)

    def _bury_next(self) -> None:
        """Wait until a process has ended, and leave nothing of it."""
        pid = 0
        if sys.platform != "darwin":  # while it is unburied its group is nobody else's
            pid = _pid_of(os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
        if pid in self._numbers:
            signal_group(pid, _signal.SIGKILL)
        pid, status, usage = os.wait4(pid or -1, 0)
        number = self._numbers.pop(pid, 0)
        if number > self._words[DONE]:
            self._early[number] = status, self._words[TURN] >= number
            self._words[PEAK] = usage.ru_maxrss
        elif number:
            if self._words[TURN] <= number:  # it has left something, or was killed
                self._end_leftovers()
            if status != EXIT_PASSED << 8:
                self._line.give_turn(number + 1)
        self._look_at_early()
        signal_all(self._leftovers(), _signal.SIGKILL)

    def _look_at_early(self) -> None:
        """End like a process that died in its turn; another one can do what others were to do."""
        status, had_begun = self._early.pop(self._words[DONE] + 1, (0, False))
        if had_begun:
            self._end_like(status)

    def _leftovers(self) -> set[int]:
        """Return the process ids of what dead processes have left; what lives keeps its own."""
        return self._children.pids() - self._numbers.keys()

    def _end_leftovers(self) -> None:
        """Wait until nothing is left that could write into the output of the next job."""
        deadline = time.monotonic() + LEFTOVERS_S
        while (left := self._leftovers()) and time.monotonic() < deadline:
            signal_all(left, _signal.SIGKILL)
            time.sleep(_RETRY_S)
            for pid in left:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        for fd in self._line.outputs:
            os.ftruncate(fd, 0)

    def _end_like(self, status: int) -> NoReturn:
        """End as a process has ended that was to run the present job."""
        for pid in self._numbers:
            signal_group(pid, _signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there is one, of the process
            with suppress(OSError, ValueError):
                _signal.signal(-code, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (-code,))
            os.kill(self._pid, -code)
        os._exit(max(code, 1) if code else 0)

    # -- signals ---------------------------------------------------------------------------

    def _present(self) -> int:
        """Return the process id of the one whose turn it is; 0: there is none now."""
        number = self._words[TURN]
        return next((pid for pid, each in self._numbers.items() if each == number), 0)

    def _interrupt(self, signum: int, frame: object) -> None:
        """Pass SIGINT on to the job that it is meant for: the first time to its children, too."""
        pid, number = self._present(), self._words[INTERRUPTED]
        if not pid or self._words[RUNNING] != number:
            return  # it has ended, or will see it when it begins
        if number != self._interrupted:
            self._interrupted = number
            signal_group(pid, signum)
        else:
            signal_all([pid], signum)

    def _terminate(self, signum: int, frame: object) -> None:
        if pid := self._present():
            signal_group(pid, signum)

    def _follow(self, signum: int, frame: object) -> None:
        if pid := self._present():
            signal_all([pid], signum)


def _pid_of(found: os.waitid_result | None) -> int:
    return found.si_pid if found else 0
