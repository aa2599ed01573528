"""A shared broker as users start it, with a node that dials it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .work import WORKERS

DOORS = re.compile(r"nodes dial (\S+), clients (\S+),")
STOP_S = 20.0


class Broker(NamedTuple):
    """A running broker."""

    nodes: str  # where nodes dial in, "host:port"
    clients: str  # where clients dial in
    pid: int
    ready_s: float  # from its start until it says that it is there


@contextmanager
def started(folder: Path | None, *options: str) -> Iterator[Broker]:
    """Have a broker for a while, with its journal in ``folder`` or none."""
    journal = ["--no-journal"] if folder is None else ["--state-dir", str(folder)]
    command = [sys.executable, "-m", "dispy.broker.cli", "-p", "0", *journal, *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        found = None
        for line in process.stderr:
            found = DOORS.search(line)
            if found is not None:
                break
        if found is None:
            raise RuntimeError("the broker didn't start")
        ready_s = time.perf_counter() - began
        yield Broker(found[1], found[2], process.pid, ready_s)
    finally:
        process.terminate()
        process.communicate(timeout=STOP_S)


@contextmanager
def node_of(broker: Broker, cpus: int = WORKERS) -> Iterator[int]:
    """Have a node that works for a broker; the context is its pid."""
    command = [sys.executable, "-m", "dispy.node.cli", "-p", "0", "-c", str(cpus)]
    command += ["--broker", broker.nodes]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def kill(broker: Broker) -> None:
    """End a broker as a power failure would."""
    os.kill(broker.pid, signal.SIGKILL)
