"""Hundreds of clients at one broker: all are served, and each costs it little.

Each has a session of its own, as programs have; to spare this machine, all are in one process.
DISPY_TEST_CLIENTS says how many.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

import dispy
from dispy import DispyJob, process, remote
from dispy.recording import Recordings
from dispy.session import Session

from .conftest import StartBroker, StartNode
from .secured import KEYS
from .waiting import until

CLIENTS = int(os.environ.get("DISPY_TEST_CLIENTS", "60"))
JOBS = 10  # of each
PATIENCE_S = 30 + CLIENTS / 4
MEMORY_BYTES = 400_000  # of the broker, for each client


class OwnSession(dispy.SharedJobCluster):
    """A cluster whose session with the broker isn't shared with others of this process."""

    session: Session

    @contextmanager
    def _connected(self) -> Iterator[Session]:
        broker = remote.Broker(self._address, KEYS)
        mine = (self._address, None)
        self.session = process._begin(broker, Recordings(shared_at=self._address), mine, True)
        process._sessions.pop(mine)
        yield self.session


def double(n: int) -> int:
    return 2 * n


@pytest.fixture
def clusters() -> Iterator[list[OwnSession]]:
    """What ends with the test."""
    opened: list[OwnSession] = []
    yield opened
    for cluster in opened:
        cluster.session.stop(0.0)


@pytest.mark.timeout(60 + 3 * PATIENCE_S)
def test_hundreds_of_clients_are_all_served(
    start_broker: StartBroker, start_node: StartNode, clusters: list[OwnSession]
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes, cpus=2)
    daemon = psutil.Process(broker.pid)
    before = daemon.memory_info().rss
    begin = time.monotonic()
    ended: dict[int, float] = {}  # of which client the last job ended when

    def on_end(job: DispyJob) -> None:
        assert job.result == 2 * (job.id % JOBS)
        client = job.id // JOBS
        if all(other.finish.is_set() for other in jobs[client]):
            ended[client] = time.monotonic() - begin

    more: dict[str, Any] = {"scheduler_node": broker.address, "job_status": on_end}
    jobs: list[list[DispyJob]] = [[] for _ in range(CLIENTS)]
    for _ in range(CLIENTS):
        clusters.append(OwnSession(double, max_tasks_per_child=None, **more))
    until(lambda: len(broker.status().clusters) == CLIENTS, "all clusters", PATIENCE_S)
    opened = time.monotonic() - begin
    assert broker.status().clients == CLIENTS
    for client, cluster in enumerate(clusters):
        jobs[client] += [cluster.submit_job_id(client * JOBS + n, n) for n in range(JOBS)]
    until(lambda: len(ended) == CLIENTS, "the ends of all jobs", PATIENCE_S)
    memory = (daemon.memory_info().rss - before) / CLIENTS
    times = sorted(ended.values())
    print(f"{CLIENTS} clients: open after {opened:.1f} s, served after {times[0]:.1f} s (first)")
    print(f"{statistics.median(times):.1f} s (median), {times[-1]:.1f} s (last)")
    print(f"{memory / 1024:.0f} KiB of the broker and {daemon.num_fds()} files in all")
    assert memory < MEMORY_BYTES
    for cluster in clusters:
        assert cluster.close(timeout=PATIENCE_S)
    until(lambda: not broker.status().clusters, "the end of all clusters", PATIENCE_S)
