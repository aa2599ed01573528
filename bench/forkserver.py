"""The floor of a fresh process per job: a process like the node's zygote, and nothing else.

Run as a program of its own, with what a node's zygote imports, by itself and for jobs:
``forkserver.py rate COUNT`` prints how many processes it can fork and see end per second;
``forkserver.py serve FD`` forks a process for each request on a socket, until an empty one.
A request is a pickled function and its argument; the forked process sends the result back.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import time

from dispy.node.zygote import import_for_jobs

REQUEST_BYTES = 1 << 16


def forks_per_s(count: int) -> float:
    """Fork a process that ends at once, wait for it, and so on."""
    began = time.perf_counter()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return count / (time.perf_counter() - began)


def serve(door: socket.socket) -> None:
    """Fork for each request; the processes work at the same time."""
    alive = 0
    while request := door.recv(REQUEST_BYTES):
        if os.fork() == 0:
            work(door, request)
        alive += 1
        while alive and os.waitpid(-1, os.WNOHANG)[0]:
            alive -= 1
    for _ in range(alive):
        os.wait()


def work(door: socket.socket, request: bytes) -> None:
    """Be the job process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function, argument = pickle.loads(request)
    door.send(pickle.dumps(function(argument), protocol=5))
    os._exit(0)


def main() -> None:
    import_for_jobs()
    gc.collect()
    gc.freeze()
    if sys.argv[1] == "rate":
        forks_per_s(50)  # warms up
        print(forks_per_s(int(sys.argv[2])))
    else:
        serve(socket.socket(fileno=int(sys.argv[2])))


if __name__ == "__main__":
    main()
