"""A lane: the parent of fresh processes, each of which runs one job, one after the other.

For the node it is a job process like one for many jobs: jobs and tokens come in the same way, and
what ends it tells what has ended its job. But it runs none itself. It forks a process for each,
one ahead of need, and all of them share its connection. Whose turn it is says a pipe: a process
whose job has ended writes the number of the next one into it, so that nobody has to wake between
two jobs but the two of them. It does so before it sends the result if the next job is there, else
after it; results are sent in order in any case. A process that has left others leaves the turn to
the lane, which ends those first. One that ends before it has sent its result takes the lane with
it: the lane kills the next one, and ends in the same way.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in the place of `signal`: see `runner`
import gc
import mmap
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from . import runner
from .forkhooks import register_deferred_hooks
from .jobwire import (
    DONE,
    INTERRUPTED,
    LEFT,
    OUTBOX_BYTES,
    RECORDS,
    RUNNING,
    TOKEN,
    TURN,
    head_of,
)
from .memoryfile import open_memory
from .processes import LINUX, Children, adopt_orphans, die_with_parent, signal_all, signal_group
from .runner import Runner

SENDING_S = 0.0002  # how often to look whether the process before has sent its result
EXIT_LEAVING = 71  # the exit code of a process that is done, but has children
YOUNG_MS = 4  # jobs that are as short follow each other too fast for rehearsals
_FORWARDED = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGURG)


class Lane:
    """Forks the processes of a lane. They are numbered from 1."""

    def __init__(self, function: Callable[..., Any], descriptors: list[int]) -> None:
        """Take over a connection to the node, stdout, stderr, tokens and outbox."""
        connection, output, error, self._tokens, outbox = descriptors
        memory = memoryview(mmap.mmap(outbox, OUTBOX_BYTES))
        os.close(outbox)
        self._words = head_of(memory)
        self._runner = Runner(
            function,
            runner.connect(connection),
            self._tokens,
            memory,
            runner.print_to(output, error),
            succession=self,
        )
        self._pid = os.getpid()
        self._turns = (os.pipe(), os.pipe())  # for odd and even numbers: who is next takes no other
        self._left = open_memory("left", 0)
        self._children = Children()
        self._line: dict[int, int] = {}  # process id to number
        # Of those that died before the one before them was done: status, and if in their turn.
        self._early: dict[int, tuple[int, bool]] = {}
        self._number = 0  # in the process of a job: its own
        self._passed = False  # in the process of a job: the next one has its turn
        self._interrupted = 0  # the number of the last job that was

    def run(self) -> NoReturn:
        """Fork, and bury, until something ends a process before its job does."""
        for signum, forward in zip(
            _FORWARDED, (self._interrupt, self._terminate, self._follow), strict=True
        ):
            _signal.signal(signum, forward)
        self._give_turn(1)
        while True:
            self._fill()
            self._bury_next()

    # -- the line --------------------------------------------------------------------------

    def _fill(self) -> None:
        """Have a process that runs a job or waits for one, and the next one."""
        present = self._words[DONE] + 1
        for number in (present, present + 1):
            if number in self._line.values() or number in self._early:
                continue
            try:
                self._fork(number)
            except OSError:
                if number == present:
                    raise

    def _fork(self, number: int) -> None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _FORWARDED)
        pid = os.fork()
        if pid == 0:
            self._be_runner(number)
        self._line[pid] = number
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _FORWARDED)

    def _bury_next(self) -> None:
        """Wait until a process has ended, and leave nothing of it."""
        pid = 0
        if sys.platform != "darwin":  # while it is unburied its group is nobody else's
            pid = _pid_of(os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
        if pid in self._line:
            signal_group(pid, _signal.SIGKILL)
        pid, status = os.waitpid(pid or -1, 0)
        number = self._line.pop(pid, 0)
        if number > self._words[DONE]:
            self._early[number] = status, self._words[TURN] >= number
        elif number and status:  # it has left something, or was killed before it could say so
            self._end_leftovers()
            self._give_turn(number + 1)
        self._look_at_early()
        signal_all(self._leftovers(), _signal.SIGKILL)

    def _look_at_early(self) -> None:
        """End like a process that died in its turn; another one can do what others were to do."""
        status, had_begun = self._early.pop(self._words[DONE] + 1, (0, False))
        if had_begun:
            self._end_like(status)

    def _leftovers(self) -> set[int]:
        """Return the process ids of what dead processes have left; what lives keeps its own."""
        return self._children.pids() - self._line.keys()

    def _end_leftovers(self) -> None:
        while left := self._leftovers():
            signal_all(left, _signal.SIGKILL)
            for pid in left:
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _end_like(self, status: int) -> NoReturn:
        """End as a process has ended that was to run the present job."""
        for pid in self._line:
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

    def _give_turn(self, number: int) -> None:
        """Say whose turn it is; doing so twice does no harm."""
        self._words[TURN] = max(number, self._words[TURN])
        os.write(self._turns[number % 2][1], TOKEN.pack(number))

    # -- signals ---------------------------------------------------------------------------

    def _present(self) -> int:
        """Return the process id of the one whose turn it is; 0: there is none now."""
        number = self._words[TURN]
        return next((pid for pid, each in self._line.items() if each == number), 0)

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

    # -- processes for one job -------------------------------------------------------------

    def _be_runner(self, number: int) -> NoReturn:
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
            self._number = number
            self._warm_up(number)
            runner.prepare(self._runner)
            self._wait_for_turn(number)
            self._take_over()
            if runner.serve(self._runner, 1):
                self._hand_over()
        except BaseException as problem:
            print(f"dispy: a job process could not start: {problem!r}", file=sys.stderr, flush=True)
            os._exit(1)
        runner.leave()

    def _warm_up(self, number: int) -> None:
        """Use the time in which the job before runs, unless CPUs are scarce."""
        poll = select.poll()
        poll.register(self._turns[number % 2][0], select.POLLIN)
        if self._is_idle() or not poll.poll(YOUNG_MS):
            runner.rehearse(1)

    def _wait_for_turn(self, number: int) -> None:
        turns = self._turns[number % 2][0]
        if not LINUX:  # where it outlives a lane that is killed
            poll = select.poll()
            poll.register(turns, select.POLLIN)
            poll.register(self._tokens, 0)  # whose end says that the node has given the lane up
            if self._tokens in [fd for fd, _ in poll.poll()]:
                os._exit(0)
        while int.from_bytes(os.read(turns, TOKEN.size), "little") != number:
            pass  # it was the turn of one that has ended

    def _is_idle(self) -> bool:
        """Whether no job runs or waits."""
        return not self._words[RUNNING] and not self._has_tokens()

    def _has_tokens(self) -> bool:
        return bool(select.select([self._tokens], [], [], 0)[0])

    def _take_over(self) -> None:
        inbox = self._runner.inbox
        inbox.heard = self._words[RECORDS]
        if size := self._words[LEFT]:
            inbox.take_over(os.pread(self._left, size, 0))
            self._words[LEFT] = 0

    def job_ended(self, process: Runner) -> None:
        """The job has ended: let the next one begin, if it is there, and wait for the one before.

        Else it begins after the result is sent: until then nobody's time is wasted.
        """
        number = self._number
        if process.talk is None and not _has_children() and self._has_tokens():
            self._passed = True
            os.nice(19)  # what is left to do may wait
            self._give_turn(number + 1)
        self.wait_to_send()

    def wait_to_send(self) -> None:
        """Wait until the process before has sent its result."""
        while self._words[DONE] < self._number - 1:
            time.sleep(SENDING_S)

    def _hand_over(self) -> None:
        process, number = self._runner, self._number
        if process.talk is not None:  # only then it has read more than its job
            self._words[RECORDS] = process.talk.sent
            left = process.inbox.leave()
            os.pwrite(self._left, left, 0)
            self._words[LEFT] = len(left)
        self._words[DONE] = number
        if self._passed:
            os._exit(0)
        if _has_children():
            os._exit(EXIT_LEAVING)
        os.nice(19)
        self._give_turn(number + 1)
        os._exit(0)


def _has_children() -> bool:
    """Whether the job has left any, which this process gets from those that have ended, too."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _pid_of(found: os.waitid_result | None) -> int:
    return found.si_pid if found else 0
