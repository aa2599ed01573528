"""Drives `bench/forkserver.py`: how fast processes can be had here, whoever asks for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import neg
from pathlib import Path
from statistics import median

import cloudpickle

from .work import check

PROGRAM = Path(__file__).with_name("forkserver.py")
IN_FLIGHT = 8
REPEATS = 3
TIMEOUT_S = 30.0
ENVIRONMENT = {**os.environ, "LD_BIND_NOW": "1"}  # as the node starts its zygote


def forks_per_s(count: int) -> float:
    """Rate of fork and exit, one after the other."""
    command = [sys.executable, str(PROGRAM), "rate", str(count)]
    outputs = [subprocess.check_output(command, env=ENVIRONMENT) for _ in range(REPEATS)]
    return median(map(float, outputs))


def served_per_s(count: int) -> float:
    """Rate of request, fork, run and result, with `IN_FLIGHT` requests at a time."""
    with server() as door:
        _served_per_s(door, 50)  # warms up
        return median(_served_per_s(door, count) for _ in range(REPEATS))


@contextmanager
def server() -> Iterator[socket.socket]:
    """Run the fork server; the context is our end of its socket."""
    # Datagrams: each forked process can send its result as one message, and macOS has no
    # SOCK_SEQPACKET.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        fd = theirs.fileno()
        command = [sys.executable, str(PROGRAM), "serve", str(fd)]
        process = subprocess.Popen(command, pass_fds=[fd], env=ENVIRONMENT)
        ours.settimeout(TIMEOUT_S)
        try:
            yield ours
            ours.send(b"")
            process.wait(TIMEOUT_S)
        finally:
            process.kill()
            process.wait()


def _served_per_s(door: socket.socket, count: int) -> float:
    request = cloudpickle.dumps((neg, 1))
    answers = []
    began = time.perf_counter()
    for number in range(count + IN_FLIGHT):
        if number >= IN_FLIGHT:
            answers.append(door.recv(1000))
        if number < count:
            door.send(request)
    seconds = time.perf_counter() - began
    check(len(answers) == count and len(set(answers)) == 1, "forked processes")
    return count / seconds
