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
from .succession import Line, Successor

REHEARSALS = 60  # all code that gets adapted has been after so many
RESULT_BYTES = 1024  # more than the result of one


def rehearse(times: int = 1) -> None:
    """Go through all that a process of a lane does for a job, except to end."""
    ours, theirs = _socket.socketpair()
    output = os.open(os.devnull, os.O_RDWR)
    tokens, turns = os.pipe(), os.pipe()
    memory = memoryview(bytearray(OUTBOX_HEAD))
    words = head_of(memory)
    line = Line(words, tokens[0], (output, output), (turns, turns), -1, _own_policy())
    body = pack_object([], pickle.dumps(((), {}), 5))
    job = JOB.pack(len(body), 0) + body
    words[AHEAD] = 1
    line.give_turn(1)
    for number in range(1, times + 1):
        words[GIVEN] = words[AHEAD] = number + 1
        ours.sendall(BLOCK.pack(len(job), number, 1) + job)
        os.write(tokens[1], TOKEN.pack(number))
        process = Runner(bool, theirs, tokens[0], memory, (output, output))
        successor = Successor(line, process)
        successor.number = number
        successor.take_turn()
        successor.run_job()
        ours.recv(RESULT_BYTES)
    assert words[DONE] == times
    for fd in (ours.detach(), theirs.detach(), output, *tokens, *turns):
        os.close(fd)


def _own_policy() -> int:
    """Return the scheduling policy of this process, which it keeps."""
    return os.sched_getscheduler(0) if sys.platform == "linux" else 0
