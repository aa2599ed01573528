"""Two clusters share the nodes of a broker, which is killed in the middle of their work.

The broker runs as a process of its own, as it would for a group of people. It is killed without a
warning and started again: programs and node reconnect by themselves, jobs that run go on, and no
job is lost or run twice. (This example starts a broker, and a node unless it gets one.)
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from node_option import command_line
from own_broker import OwnBroker
from own_node import running_node

import dispy

CPUS = 2
JOBS = 12
JOB_S = 0.3


def work(number: int) -> int:
    """Run as a job, on a node."""
    time.sleep(JOB_S)
    return number


def begin(name: str, broker: str, node: str) -> tuple[dispy.SharedJobCluster, list[dispy.DispyJob]]:
    """Make a cluster at the broker, as a program would, and give it its jobs."""
    cluster = dispy.SharedJobCluster(work, nodes=[node], scheduler_node=broker, name=name)
    return cluster, [cluster.submit(number) for number in range(JOBS)]


def as_it_should(name: str, jobs: list[dispy.DispyJob]) -> bool:
    """Say how the jobs of a cluster ended; return whether all is right."""
    right = [job() for job in jobs] == list(range(JOBS))
    finished = sum(job.status == dispy.DispyJob.Finished for job in jobs)
    print(f"{name}: {finished} of {JOBS} jobs finished, results are right: {right}")
    return right


def try_on(node: str, broker: OwnBroker) -> bool:
    with ExitStack() as stack:
        clusters = {}
        for name in ("stars", "storms"):
            cluster, jobs = begin(name, broker.address, node)
            stack.enter_context(cluster)
            clusters[name] = jobs
        clusters["stars"][0]()
        broker.kill_and_restart()
        return all([as_it_should(name, jobs) for name, jobs in clusters.items()])


def main() -> int:
    nodes = command_line(__doc__).parse_args().nodes
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = nodes[0] if nodes else stack.enter_context(running_node(CPUS))
        broker = OwnBroker(state)
        stack.callback(broker.stop)
        return 0 if try_on(node, broker) else 1


if __name__ == "__main__":
    raise SystemExit(main())
