"""Jobs that do nothing, run by a process before it gets one that counts, which then costs less.

The interpreter adapts code that has run a few times, by writing into it. Done before processes
are forked, that spares each of them the copying of these pages. Done once more after the fork, in
a process that has nothing else to do, it takes about as long as its job takes less.
"""

from __future__ import annotations

import _socket  # in the place of `socket`: see `runner`
import os
import pickle
import sys

from dispy.protocol.payload import pack_object

from .jobwire import AHEAD, BLOCK, DONE, GIVEN, JOB, OUTBOX_HEAD, TOKEN, head_of
from .runner import Runner
from .succession import EXIT_PASSED, Line, Priority, Successor

REHEARSALS = 40  # all code that gets adapted has been after so many
RESULT_BYTES = 1024  # more than the result of one


class Rehearsal:
    """All that a process needs for such jobs. What is made before a fork is cheap after it."""

    def __init__(self) -> None:
        self._ours, self._theirs = _socket.socketpair()
        self._output = os.open(os.devnull, os.O_RDWR)
        self._tokens, self._turns = os.pipe(), os.pipe()
        outputs, turns = (self._output, self._output), (self._turns, self._turns)
        memory = memoryview(bytearray(OUTBOX_HEAD))
        self._words = head_of(memory)
        parent, tokens, policy = os.getppid(), self._tokens[0], _own_priority()
        self._line = Line(parent, 0, self._words, tokens, outputs, turns, -1, 2, policy)
        self._runner = Runner(bool, self._theirs, tokens, memory, outputs)
        self._successor = Successor(self._line, self._runner, _stay)
        body = pack_object([], pickle.dumps(((), {}), 5))
        self._job = JOB.pack(len(body), 0) + body

    def play(self) -> None:
        """Go through all that the next process does, except to begin and to end.

        Two must not do so at a time.
        """
        self._runner.pid = os.getpid()
        number = self._words[DONE] + 1
        self._successor.number = number
        self._give_job(number)
        self._successor.take_turn()
        self._successor.run_job()
        self._ours.recv(RESULT_BYTES)

    def play_all(self, is_ahead: bool) -> None:
        """Be the next process from its beginning to its end, and what else there may be."""
        number = self._words[DONE] + 1
        self._give_job(number)
        self._successor.live(number, is_ahead)
        self._ours.recv(RESULT_BYTES)
        self._give_token(number)
        self._runner.wait_for_token()

    def _give_job(self, number: int) -> None:
        self._words[AHEAD] = self._words[GIVEN] = number + 1
        self._ours.sendall(BLOCK.pack(len(self._job), number, 1) + self._job)
        self._give_token(number)
        self._line.give_turn(number)

    def _give_token(self, number: int) -> None:
        os.write(self._tokens[1], TOKEN.pack(number))

    def close(self) -> None:
        """Leave nothing open."""
        for fd in (self._ours.detach(), self._theirs.detach(), self._output):
            os.close(fd)
        for fd in (*self._tokens, *self._turns):
            os.close(fd)


def rehearse_alone() -> None:
    """Play it once, whoever else does meanwhile."""
    rehearsal = Rehearsal()
    rehearsal.play()
    rehearsal.close()


def adapt_code() -> None:
    """Have the interpreter adapt all that is run in new processes."""
    rehearsal = Rehearsal()
    streams = os.dup(1), os.dup(2)
    try:
        for number in range(REHEARSALS):
            rehearsal.play()
            rehearsal.play_all(is_ahead=bool(number % 2))
    finally:
        for fd, stream in enumerate(streams, 1):
            os.dup2(stream, fd)
            os.close(stream)
    rehearsal.close()


def _own_priority() -> Priority:
    """Return that of this process, which it keeps."""
    if sys.platform != "linux":
        return None
    try:
        return os.sched_getscheduler(0), os.sched_getparam(0)
    except OSError:  # not every C library can tell
        return None


def _stay(code: int) -> None:
    """Do not end. Raises `RuntimeError` where a process would have told that it has failed."""
    if code not in (0, EXIT_PASSED):
        raise RuntimeError("a rehearsal has failed, and so would the processes of jobs")
