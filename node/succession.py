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
import time
from collections.abc import Callable
from typing import TypeAlias

from . import forkhooks, runner
from .jobwire import (
    AHEAD,
    BEGUN,
    DONE,
    EXIT_UNREACHABLE,
    GIVEN,
    LEFT,
    LONG,
    RECORDS,
    TOKEN,
    TOKEN_BYTES,
    TURN,
)
from .mailboxes import NodeGone
from .processes import LINUX, begin_below, die_with_parent, reap
from .runner import Runner

AWAITED = (_signal.SIGCHLD, _signal.SIGINT, _signal.SIGTERM, _signal.SIGURG)  # by the lane
SENDING_MIN_S, SENDING_MAX_S = 0.0002, 0.005  # how often to look whether a result is sent
SHORT_S = 0.0005  # after a job that took no longer, nothing is forked ahead of the next at first
EXIT_PASSED = 70  # the exit code of a process that has given the next one its turn
EXIT_FAILED = 1  # ... of one that could not run its job at all
YOUNG_S = 0.004  # jobs that are as short follow each other too fast for rehearsals
BRIEF_S = 0.05  # after a longer job there may be much memory to free, which is not to wait

# A policy of the scheduler (`sched(7)`) and its parameter; None: there are no such policies.
Priority: TypeAlias = "tuple[int, os.sched_param] | None"


class Line:
    """What all processes of a lane share."""

    def __init__(
        self,
        lane: int,
        death: int,
        words: memoryview,
        tokens: int,
        outputs: tuple[int, int],
        turns: tuple[tuple[int, int], tuple[int, int]],
        left: int,
        log: int,
        priority: Priority,
    ) -> None:
        self.lane = lane  # its process id
        self.death = death  # the signal by which they die with it; 0: they don't
        self.words = words  # the head of the outbox
        self.tokens = tokens
        self.outputs = outputs
        self.turns = turns  # for even and odd: who is next takes no other
        self.left = left  # a file for what was read for later jobs
        self.log = log  # what isn't of the job that runs goes there
        self._priority = priority  # of those that have given their turn away

    def give_turn(self, number: int) -> None:
        """Say whose turn it is, also to one that waits; doing so twice does no harm."""
        self.words[TURN] = max(number, self.words[TURN])
        if self.words[AHEAD] >= number:
            os.write(self.turns[number % 2][1], TOKEN.pack(number))

    def make_way(self) -> None:
        """Let all others go first from now on: what is left is for the kernel to do.

        Where there are no such policies nothing is done: in a rehearsal it could not be undone.
        """
        if self._priority is not None:
            try:  # noqa: SIM105 - `suppress` is dear in a fresh process
                os.sched_setscheduler(0, *self._priority)
            except OSError:  # where that is forbidden, it only takes longer
                pass


class Successor:
    """The process of one job. It is made in the lane, and becomes that of a number in a fork."""

    def __init__(self, line: Line, process: Runner, leave: Callable[[int], object]) -> None:
        """``leave`` ends a process, with an exit code."""
        self._line = line
        self._words = line.words
        self._process = process
        process.succession = self
        self._leave = leave
        self._has_hooks = False  # that each process has to register
        self._warm_up: Callable[[], None] = warm_up_not
        self._warm_up_ahead: Callable[[], None] = warm_up_not
        self.number = 0
        self._has_turn = False
        self._passed = False  # the next one has its turn
        self._is_brief = False  # the job was

    def prepare(self, warm_up: Callable[[], None], warm_up_ahead: Callable[[], None]) -> None:
        """Do, in the lane, what holds for all processes.

        With ``warm_up`` they use the time until a job comes, with the other that until their
        turn, when it may also be in use by the one before.
        """
        self._has_hooks = bool(forkhooks.deferred)
        self._warm_up, self._warm_up_ahead = warm_up, warm_up_ahead
        _signal.signal(_signal.SIGURG, runner.follow)
        runner.prepare(self._process)

    def live(self, number: int, is_ahead: bool) -> None:
        """Be the process of this number, in a fork of the lane, from the beginning to the end."""
        code = EXIT_FAILED
        try:
            self._begin(number)
            if is_ahead:
                self._wait_for_turn()
            else:
                self._has_turn = True
                if not self._words[GIVEN] > self._words[BEGUN]:  # but there is no job
                    self._warm_up()
            try:
                self.run_job()
                code = EXIT_PASSED if self._passed else 0
            except (NodeGone, OSError):
                code = EXIT_UNREACHABLE
                runner.say_unreachable()
        except BaseException as problem:
            try:
                text = f"dispy: a job process has failed: {problem!r}\n"
                log = 2 if self._has_turn else self._line.log
                os.write(log, text.encode("utf-8", "backslashreplace"))
            finally:
                self._leave(code)
        self._leave(code)

    def _begin(self, number: int) -> None:
        if LINUX:  # elsewhere it wouldn't die with the lane, but it does with its group
            begin_below(self._line.lane, self._line.death)
        else:
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            die_with_parent(self._line.lane, self._line.death)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, AWAITED)
        output, error = self._line.outputs
        runner.print_to(output, error)
        if self._has_hooks:
            forkhooks.register_deferred_hooks()
        self.number = number
        self._passed = False
        self._process.pid = os.getpid()

    def _wait_for_turn(self) -> None:
        """Wait for the turn; use the time, unless CPUs are scarce."""
        turns = self._line.turns[self.number % 2][0]
        poll = select.poll()  # unlike `select`, for any descriptor
        poll.register(turns, select.POLLIN)
        if not poll.poll(YOUNG_S * 1000):
            self._warm_up_ahead()
        if not LINUX:  # where it outlives a lane that is killed
            poll.register(self._line.tokens, 0)  # its end: the node has given the lane up
            if self._line.tokens in [fd for fd, _ in poll.poll()]:
                os._exit(0)
        self.take_turn()

    def take_turn(self) -> None:
        """Wait until the one before gives its turn away."""
        turns = self._line.turns[self.number % 2][0]
        while int.from_bytes(os.read(turns, TOKEN_BYTES), "little") != self.number:
            pass  # it was the turn of one that has ended
        self._has_turn = True

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
        if process.inbox.has_more() and not self._passed:
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
        if self._process.inbox.has_more() and self._words[DONE] < self.number:
            self._leave_rest()
        if self._is_brief:
            self._line.make_way()
        self._line.give_turn(self.number + 1)
        self._passed = True


def _leaves_something() -> bool:
    """Whether the job has left threads or processes, be they its children's."""
    return bool(_thread._count()) or reap()


def warm_up_not() -> None:
    """Leave the time unused."""
