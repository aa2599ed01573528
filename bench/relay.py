"""What it costs when a node is behind a relay."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from . import nodes, throughput
from .work import WORKERS, Runner, no_op

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
    """No-op jobs per second on the same node, with reused processes: direct, through a relay."""
    with nodes.started(WORKERS) as node:
        with _cluster(node.address) as direct:
            without = throughput.jobs_per_s(direct, jobs)
        with started(node.address) as door, _cluster(door, "*") as relayed:
            return without, throughput.jobs_per_s(relayed, jobs)


def round_trips_ms(count: int) -> tuple[float, float]:
    """The median times from submit to result, one job at a time: direct, through a relay."""
    with nodes.started(WORKERS) as node:
        with _cluster(node.address) as direct:
            without = throughput.round_trip(direct, count).p50_ms
        with started(node.address) as door, _cluster(door, "*") as relayed:
            return without, throughput.round_trip(relayed, count).p50_ms
