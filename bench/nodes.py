"""Nodes as users start them, for measurements that need more than one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

ADDRESS = re.compile(r"CPUs at (\S+), pid (\d+)")


class Node(NamedTuple):
    """A running node."""

    address: str  # "host:port"
    pid: int


@contextmanager
def started(cpus: int = 1) -> Iterator[Node]:
    """Have a node for a while."""
    command = [sys.executable, "-m", "dispy.node.cli", "-c", str(cpus), "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            yield _ready(process.stderr.readline())
        finally:
            process.terminate()
            process.stderr.read()


@contextmanager
def pair() -> Iterator[list[Node]]:
    """Have two nodes of one CPU each."""
    with ExitStack() as stack:
        yield [stack.enter_context(started()) for _ in range(2)]


def _ready(line: str) -> Node:
    found = ADDRESS.search(line)
    if found is None:
        raise RuntimeError(f"a node didn't start: {line}")
    return Node(found[1], int(found[2]))
