"""The private node of this process, for programs that find no other.

One for the whole process, started when first needed. It ends when its standard input is
closed, which the kernel does even if this process is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from .log import logger

PROBE_S = 0.5  # loopback answers at once, or something is wrong with what listens there
END_S = 5.0  # how long the node may take to end its jobs

_lock = threading.Lock()
_node: subprocess.Popen[bytes] | None = None
_node_cpus = 0


def listens(address: str, port: int) -> bool:
    """Whether something accepts connections there; nothing is said to it."""
    try:
        socket.create_connection((address, port), PROBE_S).close()
    except OSError:
        return False
    return True


def start(cpus: int, broker_port: int) -> None:
    """Make sure that the private node runs, with at least ``cpus`` jobs at a time.

    0 means as many as the machine has CPUs. It joins the broker at that port of 127.0.0.1.
    """
    global _node, _node_cpus
    with _lock:
        if _node is not None and _node.poll() is None:
            if cpus > _node_cpus:
                logger.warning(
                    "the private node runs %d jobs at a time, not %d: it was started so earlier",
                    _node_cpus,
                    cpus,
                )
            return
        _node_cpus = max(cpus, _cpu_count())
        _node = _spawn(_node_cpus, broker_port)
        logger.info("started a private node with %d CPUs on this machine", _node_cpus)


def stop() -> None:
    """End the private node, if there is one, and all that it runs."""
    global _node
    with _lock:
        node, _node = _node, None
        if node is None:
            return
        assert node.stdin is not None
        with suppress(OSError):
            node.stdin.close()
        try:
            node.wait(END_S)
        except subprocess.TimeoutExpired:
            node.kill()  # its jobs end with it
            node.wait()


def forget() -> None:
    """In a forked child: the node belongs to the parent."""
    global _node, _lock
    _lock = threading.Lock()
    if _node is not None and _node.stdin is not None:
        with suppress(OSError):
            _node.stdin.close()  # else it would outlive the parent
    _node = None


def _spawn(cpus: int, broker_port: int) -> subprocess.Popen[bytes]:
    broker = f"127.0.0.1:{broker_port}"
    command = [sys.executable, "-m", "dispy.node.cli", "--broker", broker, "--private"]
    return subprocess.Popen(
        [*command, "-c", str(cpus)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the program, which then decides
    )


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
