"""The private node of this process, for programs that find no other.

One for each broker of the process, started when first needed. It ends when its standard input is
closed, which the kernel does even if this process is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from dispy.broker.embedded import PrivateDoor
from dispy.protocol import secret as secrets

from .log import logger

PROBE_S = 0.5  # loopback answers at once, or something is wrong with what listens there
END_S = 5.0  # how long the node may take to end its jobs
RESTARTS_MAX = 5  # of a node that ends by itself; then something is wrong for good
RESTART_PAUSE_S = 0.5


class PrivateNode:
    """The node's process, and a thread that waits for its end."""

    def __init__(self, door: PrivateDoor) -> None:
        self._door = door
        self._stopping = threading.Event()
        self._process = self._spawn()
        self._watcher = threading.Thread(target=self._watch, name="dispy-private", daemon=True)
        self._watcher.start()

    def alive(self) -> bool:
        """Whether it runs, or will soon."""
        return self._watcher.is_alive()

    def stop(self) -> None:
        """End the node and all that it runs."""
        self._stopping.set()
        self.let_go()
        self._watcher.join(END_S)
        if self._watcher.is_alive():
            self._process.kill()  # its jobs end with it
            self._watcher.join(END_S)

    def let_go(self) -> None:
        """Close our end of its standard input, which it takes for the end of its life."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def _watch(self) -> None:
        """Start the node again when it ends without having been asked to, but not for ever."""
        for _ in range(RESTARTS_MAX):
            code = self._process.wait()
            if self._stopping.wait(RESTART_PAUSE_S):
                return
            logger.warning("the private node ended by itself (%s): starting another", _why(code))
            self._process = self._spawn()
            if self._stopping.is_set():  # too late for `stop` to see this one
                self.let_go()
        code = self._process.wait()
        if not self._stopping.is_set():
            logger.error("the private node ended again (%s): given up", _why(code))

    def _spawn(self) -> subprocess.Popen[bytes]:
        broker = f"127.0.0.1:{self._door.port}"
        command = [sys.executable, "-m", "dispy.node.cli", "--broker", broker, "--private"]
        return subprocess.Popen(
            [*command, "--name", name()],
            env=_environment(self._door.secret),  # others may see what is on a command line
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # the program's output is its own; warnings go to stderr
            start_new_session=True,  # Ctrl-C is for the program, which then decides
        )


_lock = threading.Lock()
_nodes: dict[PrivateDoor, PrivateNode] = {}


def listens(address: str, port: int) -> bool:
    """Whether something accepts connections there; nothing is said to it."""
    try:
        socket.create_connection((address, port), PROBE_S).close()
    except OSError:
        return False
    return True


def start(door: PrivateDoor) -> str:
    """Make sure that a private node runs, with all CPUs of this machine; return its name.

    It joins the broker of this process that has this door.
    """
    with _lock:
        if door not in _nodes or not _nodes[door].alive():
            _nodes[door] = PrivateNode(door)
            logger.info("started a private node on this machine, with %d CPUs", cpu_count())
        return name()


def name() -> str:
    """Return the name of the private nodes of this process, which no other node has."""
    return f"{socket.gethostname()}-private-{os.getpid()}"


def stop() -> None:
    """End the private nodes."""
    with _lock:
        nodes = list(_nodes.values())
        _nodes.clear()
        for node in nodes:
            node.stop()


def forget() -> None:
    """In a forked child: the nodes are the parent's, and mustn't outlive it because of us."""
    global _lock
    _lock = threading.Lock()
    for node in _nodes.values():
        node.let_go()
    _nodes.clear()


def _environment(secret: str) -> dict[str, str]:
    """Return the environment of a private node, which has this secret or none."""
    kept = {name: text for name, text in os.environ.items() if name != secrets.TEXT_VARIABLE}
    if secret:
        return {**kept, secrets.TEXT_VARIABLE: secret}
    return {**kept, secrets.FILE_VARIABLE: ""}


def cpu_count() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _why(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
