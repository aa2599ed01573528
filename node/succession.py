"""How the processes of a lane follow each other, as each of them sees it: turns, and what is left.

A process waits for its turn, runs its job, and lets the next one go on: before it sends the
result, if the next job is there, else after it. Results are sent in order in any case. One whose
job has left threads or processes leaves the turn to the lane, which ends those first.
"""

from __future__ import annotations

import _thread
import os
import select
import time
from typing import NamedTuple, NoReturn

from . import runner
from .jobwire import DONE, LEFT, RECORDS, RUNNING, TOKEN, TURN
from .processes import LINUX, reap
from .runner import Runner

SENDING_MIN_S, SENDING_MAX_S = 0.0002, 0.005  # how often to look whether a result is sent
EXIT_PASSED = 70  # the exit code of a process that has given the next one its turn
YOUNG_MS = 4  # jobs that are as short follow each other too fast for rehearsals


class Line(NamedTuple):
    """What all processes of a lane share."""

    words: memoryview  # the head of the outbox
    tokens: int
    outputs: tuple[int, int]
    turns: tuple[tuple[int, int], tuple[int, int]]  # for even and odd: who is next takes no other
    left: int  # a file for what was read for later jobs
    poll_tokens: select.poll  # made once, since a fork pays for all that is made after it
    poll_turns: tuple[select.poll, select.poll]

    def give_turn(self, number: int) -> None:
        """Say whose turn it is; doing so twice does no harm."""
        self.words[TURN] = max(number, self.words[TURN])
        os.write(self.turns[number % 2][1], TOKEN.pack(number))

    def has_tokens(self) -> bool:
        """Whether the next job is there."""
        return bool(self.poll_tokens.poll(0))


def readable(descriptor: int) -> select.poll:
    """Return what tells when there is something to read."""
    poll = select.poll()  # unlike `select`, for any descriptor
    poll.register(descriptor, select.POLLIN)
    return poll


class Successor:
    """The process of one job, of this number in its line; in it, the lane's own runner runs."""

    def __init__(self, line: Line, number: int, process: Runner) -> None:
        self._line = line
        self._number = number
        self._process = process
        self.has_turn = False
        self._passed = False  # the next one has its turn

    def run(self) -> NoReturn:
        """Wait for the turn, run a job, let the next one go on, end."""
        process = self._process
        runner.print_to(*self._line.outputs)
        self._warm_up()
        runner.prepare(process)
        self._wait_for_turn()
        self.has_turn = True
        self._take_over()
        if runner.serve(process, 1):
            self._hand_over()
        runner.leave(EXIT_PASSED if self._passed else 0)

    def _warm_up(self) -> None:
        """Use the time in which the job before runs, unless CPUs are scarce."""
        is_idle = not self._line.words[RUNNING] and not self._line.has_tokens()
        if is_idle or not self._line.poll_turns[self._number % 2].poll(YOUNG_MS):
            runner.rehearse(1)

    def _wait_for_turn(self) -> None:
        turns = self._line.turns[self._number % 2][0]
        if not LINUX:  # where it outlives a lane that is killed
            poll = select.poll()
            poll.register(turns, select.POLLIN)
            poll.register(self._line.tokens, 0)  # its end: the node has given the lane up
            if self._line.tokens in [fd for fd, _ in poll.poll()]:
                os._exit(0)
        while int.from_bytes(os.read(turns, TOKEN.size), "little") != self._number:
            pass  # it was the turn of one that has ended

    def _take_over(self) -> None:
        """Begin with what the process before has left."""
        inbox = self._process.inbox
        inbox.heard = self._line.words[RECORDS]
        if size := self._line.words[LEFT]:
            inbox.take_over(os.pread(self._line.left, size, 0))
            self._line.words[LEFT] = 0
            os.ftruncate(self._line.left, 0)

    # -- the end ---------------------------------------------------------------------------

    def job_ended(self) -> None:
        """Let the next job begin if it is there, and wait until this one's result can be sent."""
        if self._process.talk is None and not _leaves_something() and self._line.has_tokens():
            self._leave_rest()
            self._pass()
        self.wait_to_send()

    def wait_to_send(self) -> None:
        """Wait until the process before has sent its result."""
        pause = SENDING_MIN_S
        while self._line.words[DONE] < self._number - 1:
            time.sleep(pause)
            pause = min(2 * pause, SENDING_MAX_S)

    def _leave_rest(self) -> None:
        """Leave to the next one what was read for later jobs, by whichever process."""
        if rest := self._process.inbox.leave():
            os.pwrite(self._line.left, rest, 0)
            self._line.words[LEFT] = len(rest)

    def _hand_over(self) -> None:
        if self._process.talk is not None:
            self._line.words[RECORDS] = self._process.talk.sent
        if not self._passed:
            self._leave_rest()
        self._line.words[DONE] = self._number
        if not self._passed and not _leaves_something():
            self._pass()

    def _pass(self) -> None:
        """Let the next one begin."""
        runner.make_way()
        self._line.give_turn(self._number + 1)
        self._passed = True


def _leaves_something() -> bool:
    """Whether the job has left threads or processes, be they its children's."""
    return bool(_thread._count()) or reap()
