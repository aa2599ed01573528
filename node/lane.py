"""A lane: the parent of fresh processes, each of which runs one job, one after the other.

For the node it is a job process like one for many jobs: jobs and tokens come in the same way, and
what ends it tells what has ended its job. But it runs none itself. It forks a process for each,
and all of them share its connection. While jobs are short it forks the next one when the one
before has ended, and leaves nothing of that. When a job takes longer it forks the next one ahead
of need; how these two follow each other is their own affair (`succession`). A process that ends
before it has sent its result takes the lane with it: the lane kills the next one, and ends in the
same way. (So does the next one's job, if it has just begun.)

What a process needs is made here, where it's made once: a fork pays for all that it does itself.
So signals stay blocked in the lane, which waits for them; their handlers are those of the jobs.
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
from .jobwire import AHEAD, DONE, INTERRUPTED, LONG, OUTBOX_BYTES, PEAK, RUNNING, TURN, head_of
from .memoryfile import open_memory
from .processes import LINUX, Children, signal_all, signal_group
from .rehearsal import Rehearsal, rehearse_alone
from .runner import Runner
from .succession import AWAITED, EXIT_PASSED, YOUNG_S, Line, Successor

_sigtimedwait = getattr(_signal, "sigtimedwait", None)  # not everywhere is there such a wait
LEFTOVERS_S = 1.0  # how long to wait for the end of what a job has left
_RETRY_S = 0.0005
_IDLE = (os.SCHED_IDLE, os.sched_param(0)) if sys.platform == "linux" else None


class Lane:
    """Forks the processes of a lane. They are numbered from 1."""

    def __init__(self, function: Callable[..., Any], descriptors: list[int]) -> None:
        """Take over a connection to the node, stdout, stderr, tokens and outbox."""
        connection, output, error, tokens, outbox = descriptors
        memory = memoryview(mmap.mmap(outbox, OUTBOX_BYTES))
        os.close(outbox)
        self._words = head_of(memory)
        turns = os.pipe(), os.pipe()
        left = open_memory("left", 0)
        outputs, log = (output, error), os.dup(2)
        lane, death = os.getpid(), _signal.SIGKILL
        self._line = Line(lane, death, self._words, tokens, outputs, turns, left, log, _IDLE)
        process = Runner(function, runner.connect(connection), tokens, memory, outputs)
        self._successor = Successor(self._line, process, os._exit)
        self._children = Children()
        self._numbers: dict[int, int] = {}  # process id to number
        self._killed: dict[int, int] = {}  # by number: the status of those that died in their turn
        self._has_failed = False  # the last fork: the next one can wait a little
        self._interrupted = 0  # the number of the last job that was

    def run(self) -> NoReturn:
        """Fork, and bury, until something ends a process before its job does."""
        if not LINUX:  # elsewhere a signal that would be ignored isn't kept for later, either
            _signal.signal(_signal.SIGCHLD, _ignore)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, AWAITED)
        self._successor.prepare(Rehearsal().play, rehearse_alone)
        gc.enable()
        self._words[TURN] = 1
        self._fork_next()
        while True:
            signum = self._next_signal()
            if signum == _signal.SIGCHLD:
                while self._bury_next():
                    pass
            elif signum:
                self._forward(signum)
            else:
                self._fork_next()

    # -- the line --------------------------------------------------------------------------

    def _next_signal(self) -> int:
        """Wait for the next signal; 0: the next process is to be forked."""
        if not self._due() or (self._numbers and self._has_failed and not LINUX):
            return int(_signal.sigwait(AWAITED))
        if not self._has_failed and (self._words[LONG] or not LINUX):
            return 0
        if _sigtimedwait is None:
            time.sleep(YOUNG_S)
            return 0
        found = _sigtimedwait(AWAITED, YOUNG_S)
        return found[0] if found else 0

    def _due(self) -> int:
        """Return the number of the process to be forked next; 0: none is to be.

        It is that of the present job, once the process before is buried, or the next one.
        """
        alive = self._numbers.values()
        number = self._words[DONE] + 1
        if number in alive:
            number += 1
        elif number - 1 in alive:  # it has sent its result, but still lives
            return 0
        return 0 if number in alive or self._killed else number

    def _fork_next(self) -> None:
        """Fork the process that is due, ahead of need while the one before lives."""
        if not (number := self._due()):
            return
        is_ahead = number - 1 in self._numbers.values()
        try:
            self._fork(number, is_ahead)
        except OSError:
            self._has_failed = True
            return
        self._has_failed = False
        if is_ahead:
            self._words[AHEAD] = number

    def _fork(self, number: int, is_ahead: bool) -> None:
        live = self._successor.live  # a fork pays for what is looked up after it
        pid = os.fork()
        if pid == 0:
            live(number, is_ahead)
        self._numbers[pid] = number

    def _bury_next(self) -> bool:
        """Reap a process that has ended; have another one go on, unless it died in its turn.

        Return whether there may be more of them: signals do not count the dead. One that has
        sent its result (`DONE`) may still be alive.
        """
        peak_kib = 0
        if len(self._numbers) == 1 and self._words[DONE] in self._numbers.values():
            pid, status = os.waitpid(-1, os.WNOHANG)  # most often, and it costs less
        else:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            peak_kib = usage.ru_maxrss
        number = self._numbers.pop(pid, 0)
        if number > self._words[DONE]:
            if self._words[TURN] >= number:
                self._killed[number] = status
                self._words[PEAK] = peak_kib
            else:  # as if it had not been forked
                self._has_failed = True
        elif number and status != EXIT_PASSED << 8:
            if self._words[TURN] == number:
                self._end_leftovers()
            self._line.give_turn(number + 1)
        if self._killed and self._words[DONE] + 1 in self._killed:
            self._end_like(self._killed[self._words[DONE] + 1])
        may_be_more = pid > 0 and bool(self._numbers)
        if self._words[DONE] + 1 not in self._numbers.values():
            self._fork_next()
        return may_be_more

    def _end_leftovers(self) -> None:
        """See to it that nothing is left that could write into the output of the next job."""
        if self._children.are_more_than(len(self._numbers)):
            deadline = time.monotonic() + LEFTOVERS_S
            while (left := self._leftovers()) and time.monotonic() < deadline:
                for pid in left:
                    _kill_group_of(pid)
                time.sleep(_RETRY_S)
                for pid in left:
                    with suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
        for fd in self._line.outputs:
            os.ftruncate(fd, 0)

    def _leftovers(self) -> set[int]:
        """Return the process ids of what dead processes have left; what lives keeps its own."""
        return self._children.pids() - self._numbers.keys()

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
            os.kill(os.getpid(), -code)
        os._exit(max(code, 1) if code else 0)

    # -- signals ---------------------------------------------------------------------------

    def _present(self) -> int:
        """Return the process id of the one whose turn it is; 0: there is none now."""
        number = self._words[TURN]
        return next((pid for pid, each in self._numbers.items() if each == number), 0)

    def _forward(self, signum: int) -> None:
        """Pass a signal on to the process whose turn it is, and to its children if need be."""
        pid, reaches_all = self._present(), signum == _signal.SIGTERM
        if signum == _signal.SIGINT:
            number = self._words[INTERRUPTED]
            if self._words[RUNNING] != number:
                return  # the job that it's meant for has ended, or will see it when it begins
            reaches_all = number != self._interrupted
            self._interrupted = number
        if not pid:
            return
        if reaches_all:
            signal_group(pid, signum)
        else:
            signal_all([pid], signum)


def _kill_group_of(pid: int) -> None:
    """Kill a child with all of its group, unless that is ours."""
    group = os.getpgid(pid)
    if group == os.getpgrp():
        signal_all([pid], _signal.SIGKILL)
    else:
        signal_group(group, _signal.SIGKILL)


def _ignore(signum: int, frame: object) -> None:
    """Answer a signal that is only waited for."""
