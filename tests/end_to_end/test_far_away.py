"""Nodes that are far away, or behind connections that break all the time: how much that costs.

DISPY_TEST_SCALE=10 has more jobs, so that beginning and end of them matter less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import dispy

from .conftest import NewCluster, NewProxy, StartNode
from .forwarders import Forwarder
from .processes import NodeProcess
from .test_faults import SCALE, repeatedly
from .waiting import all_ended

WAY_S = 0.05  # to a node, and back once more
NODES, CPUS = 4, 2
RUN_S = 0.2
LEAST = 0.95 if SCALE >= 10 else 0.8  # of the CPUs' time
TRIES = 3  # this machine may be busy with something else for a while
NO_OPS = int(20_000 * SCALE)
RESET_S = 0.1

Seconds = Callable[[int], float]


def no_op(number: int) -> int:
    return number


def pause(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture
def nodes(start_node: StartNode) -> list[NodeProcess]:
    return [start_node(cpus=CPUS) for _ in range(NODES)]


@pytest.fixture
def far(nodes: list[NodeProcess], tmp_path: Path) -> Iterator[list[str]]:
    """Where these nodes are far away."""
    forwarders = [
        Forwarder(tmp_path, node.address, node.for_proxy, delay_s=WAY_S) for node in nodes
    ]
    yield [forwarder.address for forwarder in forwarders]
    for forwarder in forwarders:
        forwarder.clear_away()


def no_op_times(new_cluster: NewCluster, addresses: Sequence[str]) -> Seconds:
    """Return what measures how long so many no-op jobs take, once it has been warmed up."""
    cluster = new_cluster(no_op, *addresses, max_tasks_per_child=None, pulse_interval=5)
    seconds_of(cluster, NO_OPS // 10)
    return lambda count: seconds_of(cluster, count)


def seconds_of(cluster: dispy.JobCluster, count: int) -> float:
    begin = time.monotonic()
    jobs = [cluster.submit(number) for number in range(count)]
    all_ended(jobs, 60 * SCALE)
    seconds = time.monotonic() - begin
    assert [job.result for job in jobs] == list(range(count))
    return seconds


def test_cpus_far_away_are_busy(far: list[str], new_cluster: NewCluster) -> None:
    count = int(20 * max(1.0, SCALE)) * NODES * CPUS
    cluster = new_cluster(pause, *far, max_tasks_per_child=None)
    all_ended([cluster.submit(RUN_S) for _ in range(5 * NODES * CPUS)])
    used: list[float] = []
    while len(used) < TRIES and max(used, default=0.0) <= LEAST:
        begin = time.monotonic()
        all_ended([cluster.submit(RUN_S) for _ in range(count)], 60 * SCALE)
        used.append(count * RUN_S / (NODES * CPUS) / (time.monotonic() - begin))
    print(", ".join([f"{100 * each:.1f} %" for each in used]), "of the CPUs' time")
    assert max(used) > LEAST


def test_tiny_jobs_hardly_feel_the_way(
    nodes: list[NodeProcess], far: list[str], new_cluster: NewCluster
) -> None:
    near = new_cluster(no_op, *nodes, max_tasks_per_child=None, pulse_interval=5)
    seconds_of(near, NO_OPS // 10)
    near_s = seconds_of(near, NO_OPS)
    assert near.close()
    dispy.process.end()  # so that nodes are dialled anew, where they are far away
    times = no_op_times(new_cluster, far)
    far_s = min(times(NO_OPS) for _ in range(2))
    print(f"{NO_OPS / near_s:.0f} jobs/s, {NO_OPS / far_s:.0f} far away")
    assert far_s < 2 * near_s + 4 * WAY_S


def test_resets_cost_little_time(
    start_node: StartNode, new_proxy: NewProxy, new_cluster: NewCluster
) -> None:
    node = start_node()
    proxy = new_proxy(node.address, node.for_proxy)
    times = no_op_times(new_cluster, [proxy.address])
    quiet_s = times(NO_OPS)
    with repeatedly(proxy.reset, RESET_S):
        reset_s = times(NO_OPS)
    print(f"{quiet_s:.2f} s, {reset_s:.2f} s with {proxy.resets} resets")
    assert proxy.resets > 3
    assert reset_s < 3 * quiet_s + 1.0  # that long a pause may last when connections break early
