"""How the processes of a lane follow each other, as each of them sees it: turns, and what is left.

A process that was forked ahead of need waits for its turn. Each runs its job, and lets the next
one go on if that is there: before it sends the result, if the next job is there, too, else after
it. Results are sent in order in any case. One whose job has left threads or processes leaves the
turn to the lane, which ends those first.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in the place of `signal`: see `runner`
import _thread
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

from . import runner
from .jobwire import AHEAD, BEGUN, DONE, GIVEN, LEFT, LONG, RECORDS, TOKEN, TURN
from .mailboxes import NodeGone
from .processes import LINUX, reap
from .runner import Runner

SENDING_MIN_S, SENDING_MAX_S = 0.0002, 0.005  # how often to look whether a result is sent
SHORT_S = 0.0005  # after a job that took no longer, nothing is forked ahead of the next at first
EXIT_PASSED = 70  # the exit code of a process that has given the next one its turn
YOUNG_S = 0.004  # jobs that are as short follow each other too fast for rehearsals
BRIEF_S = 0.05  # after a longer job there may be much memory to free, which is not to wait


class Line(NamedTuple):
    """What all processes of a lane share."""

    words: memoryview  # the head of the outbox
    tokens: int
    outputs: tuple[int, int]
    turns: tuple[tuple[int, int], tuple[int, int]]  # for even and odd: who is next takes no other
    left: int  # a file for what was read for later jobs
    policy: int  # the scheduling policy (`sched(7)`) of those that have given their turn away

    def give_turn(self, number: int) -> None:
        """Say whose turn it is, also to one that waits; doing so twice does no harm."""
        self.words[TURN] = max(number, self.words[TURN])
        if self.words[AHEAD] >= number:
            os.write(self.turns[number % 2][1], TOKEN.pack(number))

    def make_way(self) -> None:
        """Let all others go first from now on: what is left is for the kernel to do.

        Where there are no such policies nothing is done: in a rehearsal it could not be undone.
        """
        if sys.platform == "linux":
            with suppress(OSError):  # where that is forbidden, it only takes longer
                os.sched_setscheduler(0, self.policy, os.sched_param(0))


class Successor:
    """The process of one job. It is made in the lane, and becomes that of a number in a fork."""

    def __init__(self, line: Line, process: Runner) -> None:
        self._line = line
        self._words = line.words
        self._process = process
        process.succession = self
        self.number = 0
        self.has_turn = False
        self._passed = False  # the next one has its turn
        self._is_brief = False  # the job was

    def prepare(self) -> None:
        """Do, in the lane, what holds for all processes."""
        _signal.signal(_signal.SIGURG, runner.follow)
        runner.prepare(self._process)

    def run(self, number: int, is_ahead: bool, warm_up: Callable[[], None]) -> NoReturn:
        """Wait for the turn, run a job, let the next one go on, end."""
        self.number = number
        self._process.pid = os.getpid()
        if is_ahead:
            self._wait_for_turn(warm_up)
        else:
            self.has_turn = True
            if not self._words[GIVEN] > self._words[BEGUN]:  # but there is no job
                warm_up()
        try:
            self.run_job()
        except (NodeGone, OSError):
            runner.end_unreachable()
        os._exit(EXIT_PASSED if self._passed else 0)

    def _wait_for_turn(self, warm_up: Callable[[], None]) -> None:
        """Wait for the turn; use the time, unless CPUs are scarce."""
        turns = self._line.turns[self.number % 2][0]
        poll = select.poll()  # unlike `select`, for any descriptor
        poll.register(turns, select.POLLIN)
        if not poll.poll(YOUNG_S * 1000):
            warm_up()
        if not LINUX:  # where it outlives a lane that is killed
            poll.register(self._line.tokens, 0)  # its end: the node has given the lane up
            if self._line.tokens in [fd for fd, _ in poll.poll()]:
                os._exit(0)
        self.take_turn()

    def take_turn(self) -> None:
        """Wait until the one before gives its turn away."""
        turns = self._line.turns[self.number % 2][0]
        while int.from_bytes(os.read(turns, TOKEN.size), "little") != self.number:
            pass  # it was the turn of one that has ended
        self.has_turn = True

    def run_job(self) -> None:
        """Run the job, send its result, and let the next one go on, be it before or after."""
        process, words = self._process, self._words
        process.inbox.heard = words[RECORDS]
        if words[LEFT]:
            self._take_over()
        if not process.run_next():
            return
        if process.talk is not None:
            words[RECORDS] = process.talk.sent
        if process.inbox.has_more and not self._passed:
            self._leave_rest()
        words[DONE] = self.number
        if words[AHEAD] > self.number and not self._passed:
            self._pass()

    def _take_over(self) -> None:
        """Begin with what the process before has read for later jobs."""
        left = os.pread(self._line.left, self._words[LEFT], 0)
        self._process.inbox.take_over(left)
        self._words[LEFT] = 0
        os.ftruncate(self._line.left, 0)

    # -- the end ---------------------------------------------------------------------------

    def job_ended(self, seconds: float, goes_on: bool) -> None:
        """Let the next job begin if it is there, and wait until this one's result can be sent."""
        words = self._words
        words[LONG] = 1 if seconds > SHORT_S else 0
        self._is_brief = seconds < BRIEF_S
        if goes_on and words[AHEAD] > self.number and words[GIVEN] > words[BEGUN]:
            self._pass()
        if words[DONE] < self.number - 1:
            self.wait_to_send()

    def wait_to_send(self) -> None:
        """Wait until the process before has sent its result."""
        pause = SENDING_MIN_S
        while self._words[DONE] < self.number - 1:
            time.sleep(pause)
            pause = min(2 * pause, SENDING_MAX_S)

    def _leave_rest(self) -> None:
        """Leave to the next one what was read for later jobs, by whichever process."""
        rest = self._process.inbox.leave()
        os.pwrite(self._line.left, rest, 0)
        self._words[LEFT] = len(rest)

    def _pass(self) -> None:
        """Let the next one begin, unless the lane has to end first what this one leaves.

        One that has told something before its result lets nobody begin before that is sent.
        """
        has_said_all = self._process.talk is None or self._words[DONE] == self.number
        if not has_said_all or _leaves_something():
            return
        if self._process.inbox.has_more and self._words[DONE] < self.number:
            self._leave_rest()
        if self._is_brief:
            self._line.make_way()
        self._line.give_turn(self.number + 1)
        self._passed = True


def _leaves_something() -> bool:
    """Whether the job has left threads or processes, be they its children's."""
    return bool(_thread._count()) or reap()
