"""What a shared broker costs, with and without its journal, and how fairly it shares."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import psutil

from . import brokers, throughput
from .work import Runner, check, no_op, pause

if TYPE_CHECKING:
    import dispy

JOB_S = 0.05  # of those that show how CPUs are shared
LOAD_S = 8.0  # for so long
LONG_S = 0.2  # of those that a newcomer's jobs wait behind
NODES = 10


@contextmanager
def runner(journal: bool, max_tasks_per_child: int | None) -> Iterator[Runner]:
    """Run on a shared broker with one node."""
    import dispy

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if journal else None
        broker = stack.enter_context(brokers.started(folder))
        stack.enter_context(brokers.node_of(broker))
        cluster = stack.enter_context(
            dispy.SharedJobCluster(
                no_op, scheduler_node=broker.clients, max_tasks_per_child=max_tasks_per_child
            )
        )
        yield Runner(cluster.submit)


class Restart(NamedTuple):
    """A broker that is killed while many jobs wait."""

    accepted_per_s: float  # jobs that get to its disk
    broker_bytes: float  # memory per job
    ready_s: float  # from its new start until it serves again


def restart(count: int) -> Restart:
    """Queue jobs, kill the broker, start it again."""
    import dispy

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(brokers.started(folder))
        process = psutil.Process(broker.pid)
        before = process.memory_info().rss
        cluster = dispy.SharedJobCluster(no_op, scheduler_node=broker.clients, name="queue")
        began = time.perf_counter()
        for number in range(count):
            cluster.submit(number)
        _until_accepted(broker, count)
        seconds = time.perf_counter() - began
        grown = process.memory_info().rss - before
        brokers.kill(broker)
        process.wait()
        with brokers.started(folder) as again:
            check(_queued(again) == count, "all jobs are there after a restart")
            ready_s = again.ready_s
            cluster.close(timeout=0, terminate=True)
    return Restart(count / seconds, grown / count, ready_s)


def _until_accepted(broker: brokers.Broker, count: int) -> None:
    while _queued(broker) < count:
        time.sleep(0.1)


def _queued(broker: brokers.Broker) -> int:
    from dispy.operator import Operator

    with Operator(broker.clients) as operator:
        status = operator.status()
    return sum(cluster.waiting + cluster.running for cluster in status.clusters)


@contextmanager
def loaded(clusters: int, count: int, job_s: float) -> Iterator[Load]:
    """Have a broker with nodes, and clusters of equal weight that have more than enough to do."""
    import dispy

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(brokers.started(folder))
        for _ in range(NODES):
            stack.enter_context(brokers.node_of(broker, 1))
        load = Load(broker, [])
        for number in range(clusters):
            cluster = dispy.SharedJobCluster(
                pause, scheduler_node=broker.clients, name=f"load{number}", max_tasks_per_child=None
            )
            stack.callback(cluster.close, timeout=0, terminate=True)
            load.jobs.append([cluster.submit(job_s) for _ in range(count)])
        for jobs in load.jobs:
            jobs[0]()
        yield load


class Load(NamedTuple):
    """What a broker has to do."""

    broker: brokers.Broker
    jobs: list[list[dispy.DispyJob]]  # of each cluster


def jain(clusters: int) -> float:
    """Jain's index of the CPU time that clusters get side by side: 1 when all have the same."""
    with loaded(clusters, 20_000, JOB_S) as load:
        before = [_done(jobs) for jobs in load.jobs]
        time.sleep(LOAD_S)
        done = [_done(jobs) - first for jobs, first in zip(load.jobs, before, strict=True)]
    return sum(done) ** 2 / (len(done) * sum(each**2 for each in done))


def _done(jobs: list[dispy.DispyJob]) -> int:
    from dispy import DispyJob

    return sum(job.status == DispyJob.Finished for job in jobs)


def newcomer(count: int) -> float:
    """After how many job lengths ten jobs of a newcomer have begun, while many are queued."""
    import dispy

    with loaded(1, count, LONG_S) as load:
        if count > 1000:
            _until_accepted(load.broker, count - 1000)
        with dispy.SharedJobCluster(
            pause, scheduler_node=load.broker.clients, max_tasks_per_child=None
        ) as cluster:
            while len(cluster.status().nodes) < NODES:
                time.sleep(0.02)  # its set-up isn't the subject
            asked = time.time()
            jobs = [cluster.submit(LONG_S) for _ in range(10)]
            for job in jobs:
                job()
            return (max(job.start_time or 0.0 for job in jobs) - asked) / LONG_S


def rates(journal: bool, jobs: int, fresh_jobs: int) -> tuple[float, float]:
    """No-op jobs per second, with reused processes and with fresh ones."""
    with runner(journal, None) as reused:
        many = throughput.jobs_per_s(reused, jobs)
    with runner(journal, 1) as fresh:
        few = throughput.jobs_per_s(fresh, fresh_jobs)
    return many, few


def round_trip_ms(journal: bool, count: int) -> float:
    """The median time from submit to result, one job at a time."""
    with runner(journal, None) as reused:
        return median([throughput.round_trip(reused, count).p50_ms])
