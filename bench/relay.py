"""What it costs when a node is behind a relay."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from . import nodes, throughput
from .work import WORKERS, Runner, no_op

REPEATS = 3  # of both in turn, since a machine's speed changes from second to second
DOOR = re.compile(r"nodes dial \S+, brokers (\S+), ")


@contextmanager
def started(node: str) -> Iterator[str]:
    """Have a relay to a node for a while; return where clients dial it."""
    command = [sys.executable, "-m", "dispy.relay.cli", "-p", "0", "-n", node]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            line = process.stderr.readline()
            found = DOOR.search(line)
            if found is None:
                raise RuntimeError(f"the relay didn't start: {line}")
            yield found[1]
        finally:
            process.terminate()
            process.stderr.read()


@contextmanager
def _cluster(*entries: str) -> Iterator[Runner]:
    import dispy

    with dispy.JobCluster(no_op, nodes=list(entries), max_tasks_per_child=None) as cluster:
        yield Runner(cluster.submit)


def rates(jobs: int) -> tuple[float, float]:
    """No-op jobs per second of a node, with reused processes: direct, through a relay."""
    return _both(lambda runner: throughput.jobs_per_s(runner, jobs))


def round_trips_ms(count: int) -> tuple[float, float]:
    """The median times from submit to result, one job at a time: direct, through a relay."""
    return _both(lambda runner: throughput.round_trip(runner, count).p50_ms)


def _both(measure: Callable[[Runner], float]) -> tuple[float, float]:
    """Measure in turn, each time with a new node; return the medians."""
    pairs = [(_direct(measure), _relayed(measure)) for _ in range(REPEATS)]
    direct, relayed = zip(*pairs, strict=True)
    return median(direct), median(relayed)


def _direct(measure: Callable[[Runner], float]) -> float:
    with nodes.started(WORKERS) as node, _cluster(node.address) as runner:
        return measure(runner)


def _relayed(measure: Callable[[Runner], float]) -> float:
    with (
        nodes.started(WORKERS) as node,
        started(node.address) as door,
        _cluster(door, "*") as runner,
    ):
        return measure(runner)
